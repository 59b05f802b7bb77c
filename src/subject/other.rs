//! Is this a possible id of the remaining kinds: ABHA number, beneficiary reference, voter card, passport, PAN?

use super::{Invalid, shaped};

/// Health-account number: fourteen digits. Its check digit rule is not published, so none is enforced.
pub(super) fn abha(text: &[u8]) -> Result<&[u8], Invalid> {
    shaped(text, b"00000000000000")?;
    Ok(text)
}

/// Vaccination beneficiary reference: thirteen digits in the published example, fourteen as issued.
pub(super) fn beneficiary(text: &[u8]) -> Result<&[u8], Invalid> {
    let shape: &[u8] = if text.len() == 13 { b"0000000000000" } else { b"00000000000000" };
    shaped(text, shape)?;
    Ok(text)
}

/// Voter card in the present form: three letters and seven digits, of which the last is the Luhn digit of the others.
/// Older state forms with slashes are refused: they would be a second name of the same person.
pub(super) fn epic(text: &[u8]) -> Result<&[u8], Invalid> {
    shaped(text, b"AAA0000000")?;
    if luhn(&text[3..]) != 0 {
        return Err(Invalid::CheckDigit);
    }
    Ok(text)
}

/// Passport: a letter and seven digits, the first of them not zero. Some validators also refuse a last zero; that
/// rule is doubtful, so this one does not.
pub(super) fn passport(text: &[u8]) -> Result<&[u8], Invalid> {
    shaped(text, b"A0000000")?;
    if text[1] == b'0' {
        return Err(Invalid::Prefix);
    }
    Ok(text)
}

/// Tax number: three letters, the type of holder, a letter, a serial from 0001, and a check letter whose rule is not
/// published.
pub(super) fn pan(text: &[u8]) -> Result<&[u8], Invalid> {
    shaped(text, b"AAAAA0000A")?;
    if !b"ABCFGHJKLPT".contains(&text[3]) || &text[5..9] == b"0000" {
        return Err(Invalid::Format);
    }
    Ok(text)
}

/// Luhn's sum of ASCII digits with the check digit last: zero when it is right (ISO/IEC 7812-1, annex B).
fn luhn(digits: &[u8]) -> u32 {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(place, digit)| match (place % 2, u32::from(digit - b'0')) {
            (0, digit) => digit,
            (_, digit) => digit * 2 / 10 + digit * 2 % 10,
        })
        .sum();
    sum % 10
}
