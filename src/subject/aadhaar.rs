//! Is this a possible Aadhaar number or virtual ID? Both share a first-digit rule, a Verhoeff check digit and the
//! refusal of palindromes; they differ in length.

use super::Invalid;

pub(super) const NUMBER: &[u8] = b"000000000000";
pub(super) const VIRTUAL_ID: &[u8] = b"0000000000000000";

/// `text` itself, when it has this shape and could have been issued.
///
/// The checks run from cheap and general to special, so that a reason means that the earlier rules held.
pub(super) fn issued<'a>(text: &'a [u8], shape: &[u8]) -> Result<&'a [u8], Invalid> {
    super::shaped(text, shape)?;
    if text[0] < b'2' {
        return Err(Invalid::Prefix);
    }
    if verhoeff(text) != 0 {
        return Err(Invalid::CheckDigit);
    }
    // One palindrome in ten passes Verhoeff; none is issued.
    if text.iter().eq(text.iter().rev()) {
        return Err(Invalid::Palindrome);
    }
    Ok(text)
}

/// Verhoeff's sum of ASCII digits with the check digit last: zero when it is right. It catches every changed digit and
/// every swap of neighbours (J. Verhoeff, Error Detecting Decimal Codes, 1969).
fn verhoeff(digits: &[u8]) -> u8 {
    digits.iter().rev().enumerate().fold(0, |sum, (place, digit)| {
        let permuted = PERMUTE[place % 8][usize::from(digit - b'0')];
        MULTIPLY[usize::from(sum)][usize::from(permuted)]
    })
}

/// The multiplication of the dihedral group D5.
const MULTIPLY: [[u8; 10]; 10] = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    [1, 2, 3, 4, 0, 6, 7, 8, 9, 5],
    [2, 3, 4, 0, 1, 7, 8, 9, 5, 6],
    [3, 4, 0, 1, 2, 8, 9, 5, 6, 7],
    [4, 0, 1, 2, 3, 9, 5, 6, 7, 8],
    [5, 9, 8, 7, 6, 0, 4, 3, 2, 1],
    [6, 5, 9, 8, 7, 1, 0, 4, 3, 2],
    [7, 6, 5, 9, 8, 2, 1, 0, 4, 3],
    [8, 7, 6, 5, 9, 3, 2, 1, 0, 4],
    [9, 8, 7, 6, 5, 4, 3, 2, 1, 0],
];

/// Row `i` is Verhoeff's permutation applied `i` times; the eighth power is the identity again.
const PERMUTE: [[u8; 10]; 8] = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    [1, 5, 7, 6, 2, 8, 3, 0, 9, 4],
    [5, 8, 0, 3, 7, 9, 6, 1, 4, 2],
    [8, 9, 1, 6, 0, 4, 3, 5, 2, 7],
    [9, 4, 5, 3, 1, 2, 6, 8, 7, 0],
    [4, 2, 8, 6, 5, 7, 3, 9, 0, 1],
    [2, 7, 9, 3, 8, 0, 6, 4, 1, 5],
    [7, 0, 4, 6, 9, 1, 3, 2, 5, 8],
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Kind, Subject};
    use super::*;

    /// The digits with their check digit appended.
    fn complete(mut digits: Vec<u8>) -> Vec<u8> {
        digits.push(b'0');
        let last = digits.len() - 1;
        while verhoeff(&digits) != 0 {
            digits[last] += 1;
        }
        digits
    }

    fn refused(digits: &[u8]) -> bool {
        Subject::parse(Kind::Aadhaar, std::str::from_utf8(digits).unwrap()).is_err()
    }

    #[test]
    fn tables_are_a_group_and_powers_of_one_permutation() {
        for a in 0..10 {
            for b in 0..10 {
                for c in 0..10 {
                    let product = |x: usize, y: usize| usize::from(MULTIPLY[x][y]);
                    assert_eq!(product(product(a, b), c), product(a, product(b, c)));
                }
            }
        }
        for power in 0..8 {
            for digit in 0..10 {
                let next = PERMUTE[1][usize::from(PERMUTE[power][digit])];
                assert_eq!(next, PERMUTE[(power + 1) % 8][digit]);
            }
        }
    }

    #[test]
    fn textbook_check_digit() {
        assert_eq!(complete(b"236".to_vec()), b"2363");
    }

    proptest! {
        #[test]
        fn every_changed_digit_and_every_swap_of_neighbours_is_refused(tail in "[0-9]{7}") {
            // UIDAI's developer numbers begin with 9999.
            let valid = complete(format!("9999{tail}").into_bytes());
            prop_assume!(valid.iter().ne(valid.iter().rev()));
            prop_assert!(!refused(&valid));
            for place in 0..valid.len() {
                for digit in b'0'..=b'9' {
                    let mut changed = valid.clone();
                    changed[place] = digit;
                    prop_assert!(changed == valid || refused(&changed));
                }
            }
            for place in 1..valid.len() {
                let mut swapped = valid.clone();
                swapped.swap(place - 1, place);
                prop_assert!(swapped == valid || refused(&swapped));
            }
        }
    }
}
