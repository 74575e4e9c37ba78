//! Sizes in bytes as people write them.

/// Largest accepted size. Numbers of bytes are exact in JSON up to here.
const MAX_BYTES: u64 = 1 << 53;

/// Parses `1GiB`, `700MiB`, `1.5GB`, `4096`, with or without a space or the final `B`.
///
/// Errors: one line with the accepted forms.
pub fn parse(text: &str) -> Result<u64, String> {
    let bytes = parse_size::parse_size(text).ok().filter(|bytes| (1..=MAX_BYTES).contains(bytes));
    bytes.ok_or_else(|| {
        format!("'{text}' is not a size: write bytes, or a number with KiB, MiB, GiB, KB, MB or GB")
    })
}

/// Parses `256MiB..4GiB`.
///
/// Errors: one line with the accepted forms.
pub fn parse_range(text: &str) -> Result<(u64, u64), String> {
    let (from, to) = text
        .split_once("..")
        .ok_or_else(|| format!("'{text}' is not a range: write FROM..TO, as in 256MiB..4GiB"))?;
    let (from, to) = (parse(from)?, parse(to)?);
    if from <= to { Ok((from, to)) } else { Err(format!("'{text}' ends before it begins")) }
}

#[cfg(test)]
mod tests {
    use super::{parse, parse_range};

    #[test]
    fn accepts_what_people_write() {
        let cases = [
            ("1GiB", 1 << 30),
            ("700MiB", 700 << 20),
            ("1.5GB", 1_500_000_000),
            ("1.5 gb", 1_500_000_000),
            ("4096", 4096),
            ("64k", 64_000),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn ranges_go_up() {
        assert_eq!(parse_range("1KiB..2GiB"), Ok((1024, 2 << 30)));
        for text in ["1GiB", "2GiB..1GiB", "..", "1GiB.."] {
            assert!(parse_range(text).is_err(), "{text}");
        }
    }

    #[test]
    fn refuses_the_rest() {
        for text in ["", "GiB", "-1", "1 parsec", "0", "1e30GiB", "1.2.3MB"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
