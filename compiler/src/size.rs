//! Sizes in bytes in readable form.

/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;

/// Bytes as MiB, rounded up to one decimal. Less than 0.1 MiB is in KiB, less than that in bytes.
pub fn mib(bytes: u64) -> String {
    let in_tenths = |unit: u64| (bytes as f64 / unit as f64 * 10.0).ceil() / 10.0;
    match bytes {
        1 => "1 byte".to_string(),
        2..103 => format!("{bytes} bytes"),
        103..104_858 => format!("{:.1} KiB", in_tenths(1 << 10)),
        _ => format!("{:.1} MiB", in_tenths(MIB)),
    }
}

#[cfg(test)]
mod tests {
    use super::mib;

    #[test]
    fn sizes_are_never_a_multiple_of_what_they_are() {
        let cases = [
            (0, "0.0 MiB"),
            (1, "1 byte"),
            (102, "102 bytes"),
            (103, "0.2 KiB"),
            (4096, "4.0 KiB"),
            (104_857, "102.4 KiB"),
            (104_858, "0.2 MiB"),
            (5 << 20, "5.0 MiB"),
            ((5 << 20) + 1, "5.1 MiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(mib(bytes), text);
        }
    }
}
