//! How does a synthetic vaccination certificate look as a PDF, and how is it made frame by frame?

use hyper::body::Bytes;

use super::registry::Person;

/// Bytes of one padding frame.
const FRAME_BYTES: usize = 4 << 10;
/// Padding frames: 100 KiB, about the size of a real certificate with its QR code and seals.
const PADDING_FRAMES: usize = 25;
/// Bytes of one line of padding, with its line feed.
const LINE_BYTES: usize = 64;

/// The frames that are yet to come: one with the page, 25 of padding, one with the cross-reference table. At any time
/// only the frame asked for is in memory, and it is made when it is asked for.
pub struct Certificate {
    opening: Bytes,
    closing: Bytes,
    given: usize,
}

impl Certificate {
    pub(super) fn of(person: &Person) -> Certificate {
        let (opening, closing) = frame_around_padding(&page(person));
        Certificate { opening: opening.into(), closing: closing.into(), given: 0 }
    }
}

impl Iterator for Certificate {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        const LAST: usize = PADDING_FRAMES + 1;
        let frame = match self.given {
            0 => self.opening.clone(),
            number @ 1..=PADDING_FRAMES => padding(number),
            LAST => self.closing.clone(),
            _ => return None,
        };
        self.given += 1;
        Some(frame)
    }
}

/// Drawing operators of the only page (ISO 32000-1 section 9.4).
fn page(person: &Person) -> String {
    let lines = [
        "SYNTHETIC vaccination certificate".to_owned(),
        "Made by a test registry. It certifies nothing about anybody.".to_owned(),
        format!("Name: {}", person.name),
        format!("Beneficiary reference: {}", person.beneficiary_reference_id),
        format!("Vaccine: {}   Status: {}", person.vaccine, person.vaccination_status),
        format!("Dose 1: {}   Dose 2: {}", person.dose1_date, person.dose2_date),
    ];
    let mut operators = String::from("BT /F1 16 Tf 60 760 Td 28 TL\n");
    for line in lines {
        operators.push_str(&format!("({}) Tj T*\n", escaped(&line)));
    }
    operators + "ET"
}

/// Parentheses and backslashes end or change a PDF string, and Helvetica's encoding agrees with ASCII only.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '(' | ')' | '\\' => escaped.extend(['\\', character]),
            ' '..='~' => escaped.push(character),
            _ => escaped.push('?'),
        }
    }
    escaped
}

/// The file before and after the padding. The padding's length is fixed, so the offsets in the closing are known
/// before a byte of padding exists.
fn frame_around_padding(page: &str) -> (String, String) {
    let padding_bytes = PADDING_FRAMES * FRAME_BYTES;
    let objects = [
        // The entry of our own keeps tools that drop unreferenced objects from shrinking the file.
        "<< /Type /Catalog /Pages 2 0 R /DwarpalPadding 6 0 R >>\nendobj\n".to_owned(),
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>\nendobj\n".to_owned(),
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R \
         /Resources << /Font << /F1 5 0 R >> >> >>\nendobj\n"
            .to_owned(),
        format!("<< /Length {} >>\nstream\n{page}\nendstream\nendobj\n", page.len()),
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>\nendobj\n".to_owned(),
        format!("<< /Length {padding_bytes} >>\nstream\n"),
    ];
    let mut opening = String::from("%PDF-1.4\n");
    // Each entry is 20 bytes, its line end two of them (ISO 32000-1 section 7.5.4).
    let mut entries = String::from("0000000000 65535 f \n");
    for (number, object) in (1..).zip(&objects) {
        entries.push_str(&format!("{:010} 00000 n \n", opening.len()));
        opening.push_str(&format!("{number} 0 obj\n{object}"));
    }
    let size = objects.len() + 1;
    let end_of_padding = "\nendstream\nendobj\n";
    let table_offset = opening.len() + padding_bytes + end_of_padding.len();
    let closing = format!(
        "{end_of_padding}xref\n0 {size}\n{entries}\
         trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{table_offset}\n%%EOF\n"
    );
    (opening, closing)
}

/// No two frames are alike, so that a lost, doubled or swapped one shows.
fn padding(number: usize) -> Bytes {
    let line = format!("{:<width$}\n", format!("padding {number:02} of {PADDING_FRAMES}"), width = LINE_BYTES - 1);
    Bytes::from(line.repeat(FRAME_BYTES / LINE_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::registry;

    fn certificate() -> Certificate {
        Certificate::of(&registry::person("12345678901234").unwrap())
    }

    #[test]
    fn there_are_many_small_frames_and_none_alike() {
        let frames: Vec<Bytes> = certificate().collect();
        assert_eq!(frames.len(), PADDING_FRAMES + 2);
        assert!(frames.len() >= 16);
        assert!(frames.iter().all(|frame| !frame.is_empty() && frame.len() <= FRAME_BYTES));
        assert!(frames[1..=PADDING_FRAMES].iter().all(|frame| frame.len() == FRAME_BYTES));
        let distinct: std::collections::HashSet<&Bytes> = frames.iter().collect();
        assert_eq!(distinct.len(), frames.len());
        let mut ended = certificate();
        assert_eq!(ended.by_ref().count(), frames.len());
        assert_eq!(ended.next(), None);
    }

    #[test]
    fn the_cross_reference_table_points_at_the_objects() {
        let file = String::from_utf8(certificate().collect::<Vec<_>>().concat()).unwrap();
        let (_, after) = file.rsplit_once("startxref\n").unwrap();
        let table_offset: usize = after.lines().next().unwrap().parse().unwrap();
        let entries = file[table_offset..].strip_prefix("xref\n0 7\n").unwrap();
        for number in 1..7 {
            let entry = &entries[number * 20..(number + 1) * 20];
            assert!(entry.ends_with(" 00000 n \n"), "object {number}");
            let offset: usize = entry[..10].parse().unwrap();
            assert!(file[offset..].starts_with(&format!("{number} 0 obj\n")), "object {number}");
        }
        for (stream, rest) in file.split("stream\n").skip(1).step_by(2).zip(file.split("/Length ").skip(1)) {
            let declared: usize = rest.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(stream.len(), declared + "\nend".len());
        }
        assert!(file.ends_with("%%EOF\n"));
        assert!(file.contains("SYNTHETIC vaccination certificate"));
    }

    #[test]
    fn text_cannot_leave_its_string() {
        let table = [("plain", "plain"), ("a) Tj (b", "a\\) Tj \\(b"), ("\\", "\\\\"), ("लोक\n", "????")];
        for (text, expected) in table {
            assert_eq!(escaped(text), expected);
        }
    }
}
