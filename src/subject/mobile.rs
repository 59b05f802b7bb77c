//! Is this an Indian mobile number, and which ten digits is it?

use super::Invalid;

/// The national number in `text`, which is compact and upper-case.
///
/// The prefix is recognised by what stands before the last ten characters, never by a leading `91` alone: `9123456789`
/// is a whole number. Thirteen-digit machine-to-machine numbers fall out because they carry no known prefix.
pub(super) fn national(text: &[u8]) -> Result<&[u8], Invalid> {
    let (prefix, number) = text.split_last_chunk::<10>().ok_or(Invalid::Format)?;
    match prefix {
        // National; with the trunk 0 that fixed lines must dial; and the international forms people write.
        b"" | b"0" | b"91" | b"091" | b"0091" | b"+91" | b"+910" => {}
        _ => return Err(Invalid::Format),
    }
    super::shaped(number, b"0000000000")?;
    if number[0] < b'6' {
        return Err(Invalid::Prefix);
    }
    Ok(number)
}
