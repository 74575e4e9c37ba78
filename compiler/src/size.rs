//! Sizes in bytes in readable form.

/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;

/// Bytes as MiB, rounded up to one decimal.
pub fn mib(bytes: u64) -> String {
    let tenths = (bytes as f64 / MIB as f64 * 10.0).ceil() / 10.0;
    format!("{tenths:.1} MiB")
}
