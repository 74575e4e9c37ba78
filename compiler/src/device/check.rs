//! The values that the fields of a profile may have.

use super::{CodeTable, DeviceProfile};
use kiln_kernels::{families, family};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::ops::RangeInclusive;

/// Most bytes of a field, so that sums of fields do not overflow.
const MAX_BYTES: u64 = 1 << 40;
/// Highest rate, so that it can be counted in a `u64`.
const MAX_RATE: f64 = 1e18;

/// A field whose value is not allowed.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
#[error("{field} is {value}, it must be {allowed}")]
pub struct WrongField {
    /// Path of the field, such as `target.vector_width`.
    pub field: String,
    /// Its value.
    pub value: String,
    /// The allowed values.
    pub allowed: String,
}

type Checked = Result<(), WrongField>;

/// Refuses a value that is not allowed.
fn check(field: &str, value: impl Display, holds: bool, allowed: &str) -> Checked {
    let wrong = || WrongField {
        field: field.to_string(),
        value: value.to_string(),
        allowed: allowed.to_string(),
    };
    if holds { Ok(()) } else { Err(wrong()) }
}

/// Refuses a value outside a range.
fn within<T: PartialOrd + Display>(field: &str, value: T, range: RangeInclusive<T>) -> Checked {
    let allowed = format!("{} to {}", range.start(), range.end());
    check(field, &value, range.contains(&value), &allowed)
}

/// Refuses a rate outside a range.
fn rate(field: &str, per_s: f64, least_per_s: f64) -> Checked {
    let holds = (least_per_s..=MAX_RATE).contains(&per_s);
    check(field, per_s, holds, &format!("{least_per_s:e} to {MAX_RATE:e}"))
}

/// Refuses a name that is none of those that there are.
fn known<'a>(field: &str, name: &str, names: impl Iterator<Item = &'a str>) -> Checked {
    let names: BTreeSet<&str> = names.collect();
    let allowed = format!("one of {}", Vec::from_iter(names.iter().copied()).join(", "));
    check(field, format_args!("{name:?}"), names.contains(name), &allowed)
}

/// Refuses a variant that an op does not have, or an op without kernels.
fn variant_of(op_field: &str, op: &str, field: &str, names: &[&str]) -> Checked {
    known(op_field, op, families().map(|family| family.op))?;
    let variants = family(op).map_or(&[][..], |family| family.variants);
    let known_variant = |name: &&str| known(field, name, variants.iter().map(|v| v.name));
    names.iter().try_for_each(known_variant)
}

impl DeviceProfile {
    /// Checks every field against the values that the planner and the kernels can work with.
    ///
    /// Errors: the first field with another value.
    pub fn check(&self) -> Checked {
        self.check_target()?;
        self.check_names()?;
        self.check_memory()?;
        self.check_rates()
    }

    fn check_target(&self) -> Checked {
        let t = &self.target;
        let (width, columns, run) = (t.vector_width, t.tile_columns, t.half_run);
        check("target.vector_width", width, [4, 8, 16].contains(&width), "4, 8 or 16")?;
        within("target.tile_rows", t.tile_rows, 1..=256)?;
        let fits = columns.is_multiple_of(width) && (1..=256).contains(&columns);
        let allowed = format!("a multiple of target.vector_width, {width}, up to 256");
        check("target.tile_columns", columns, fits, &allowed)?;
        within("target.sum_parts", t.sum_parts, 0..=256)?;
        within("target.max_work_group", t.max_work_group, 1..=1 << 20)?;
        let local_bytes = t.local_mem_bytes;
        let fits = local_bytes == 0 || (1024..=MAX_BYTES).contains(&local_bytes);
        check("target.local_mem_bytes", local_bytes, fits, "0 for none, or at least 1024")?;
        within("target.compute_units", t.compute_units, 1..=1 << 20)?;
        let fits = run.is_multiple_of(4) && run <= 256;
        check("target.half_run", run, fits, "0 for none, or a multiple of 4 up to 256")
    }

    /// The names of ops and variants.
    fn check_names(&self) -> Checked {
        for (op, names) in &self.target.prefer {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let field = format!("target.prefer.{op}");
            variant_of("an op of target.prefer", op, &field, &names)?;
        }
        for (index, tuning) in self.target.tuning.iter().enumerate() {
            let field = |name: &str| format!("target.tuning[{index}].{name}");
            variant_of(&field("op"), &tuning.op, &field("variant"), &[&tuning.variant])?;
            within(&field("tile_rows"), tuning.tile_rows, 1..=256)?;
            within(&field("tile_columns"), tuning.tile_columns, 1..=256)?;
            within(&field("sum_parts"), tuning.sum_parts, 0..=256)?;
        }
        for (name, &share) in &self.rates.variant_share {
            let all = families().flat_map(|family| family.variants).map(|variant| variant.name);
            known("a name of rates.variant_share", name, all)?;
            within(&format!("rates.variant_share.{name}"), share, 1e-4..=10.0)?;
        }
        if let Some(table) = &self.rates.machine_code {
            known("rates.machine_code", table, CodeTable::names())?;
        }
        Ok(())
    }

    fn check_memory(&self) -> Checked {
        let m = &self.memory;
        let (align_bytes, alloc_bytes) = (m.base_align_bytes, m.max_alloc_bytes);
        let fits = align_bytes.is_power_of_two() && align_bytes <= 1 << 16;
        check("memory.base_align_bytes", align_bytes, fits, "a power of two, 1 to 65536")?;
        let fits = alloc_bytes == 0 || (1 << 20..=MAX_BYTES).contains(&alloc_bytes);
        check("memory.max_alloc_bytes", alloc_bytes, fits, "0 if unknown, or at least 1048576")?;
        within("memory.process_baseline_bytes", m.process_baseline_bytes, 0..=MAX_BYTES)?;
        within("memory.compiler_bytes", m.compiler_bytes, 0..=MAX_BYTES)?;
        within("memory.kernel_bytes", m.kernel_bytes, 0..=MAX_BYTES)?;
        within("memory.max_block_bytes", m.max_block_bytes, 1 << 16..=MAX_BYTES)?;
        within("memory.slot_count", m.slot_count, 2..=64)
    }

    fn check_rates(&self) -> Checked {
        let r = &self.rates;
        rate("rates.flops_per_s", r.flops_per_s, 1e8)?;
        let half_per_s = r.half_flops_per_s;
        let fits = half_per_s == 0.0 || (1e8..=MAX_RATE).contains(&half_per_s);
        check("rates.half_flops_per_s", half_per_s, fits, "0 for FP32's rate, or 1e8 to 1e18")?;
        rate("rates.memory_bytes_per_s", r.memory_bytes_per_s, 1e8)?;
        rate("rates.io_bytes_per_s", r.io_bytes_per_s, 1e6)?;
        within("rates.launch_ns", r.launch_ns, 0..=1_000_000_000)?;
        within("rates.max_dispatch_ms", r.max_dispatch_ms, 0..=3_600_000)?;
        for published in &self.published {
            for (network, &seconds) in &published.seconds {
                let field = format!("published.seconds.{network}");
                within(&field, seconds, 0.0..=1e9)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use toml::{Table, Value};

    /// A table inside a profile, by its path.
    fn table<'a>(profile: &'a mut Table, path: &str) -> &'a mut Table {
        path.split('.').fold(profile, |table, name| {
            let entry = table.entry(name).or_insert_with(|| Value::Table(Table::new()));
            entry.as_table_mut().expect("a table")
        })
    }

    /// What is said of a profile in which one field has another value.
    fn said(path: &str, value: &str) -> String {
        let (_, text) = DeviceProfile::text("mali-g78").unwrap();
        let mut profile: Table = toml::from_str(&text).unwrap();
        let (parent, name) = path.rsplit_once('.').unwrap();
        let value: Table = toml::from_str(&format!("value = {value}")).unwrap();
        table(&mut profile, parent).insert(name.to_string(), value["value"].clone());
        let profile: DeviceProfile = profile.try_into().unwrap();
        profile.check().map_or_else(|wrong| wrong.to_string(), |()| "fits".to_string())
    }

    /// Fields with a value that is not allowed, and the end of what is said.
    const WRONG: &[(&str, &str, &str)] = &[
        ("target.vector_width", "7", "4, 8 or 16"),
        ("target.vector_width", "32", "4, 8 or 16"),
        ("target.tile_rows", "0", "1 to 256"),
        ("target.tile_columns", "5", "a multiple of target.vector_width, 4, up to 256"),
        ("target.tile_columns", "0", "a multiple of target.vector_width, 4, up to 256"),
        ("target.sum_parts", "257", "0 to 256"),
        ("target.max_work_group", "0", "1 to 1048576"),
        ("target.local_mem_bytes", "1", "0 for none, or at least 1024"),
        ("target.compute_units", "0", "1 to 1048576"),
        ("target.half_run", "3", "0 for none, or a multiple of 4 up to 256"),
        ("target.prefer.matmul", "['nosuchvariant']", "naive"),
        ("target.prefer.nosuchop", "['naive']", "upsample"),
        ("memory.base_align_bytes", "0", "a power of two, 1 to 65536"),
        ("memory.base_align_bytes", "3", "a power of two, 1 to 65536"),
        ("memory.max_alloc_bytes", "1", "0 if unknown, or at least 1048576"),
        ("memory.process_baseline_bytes", "1099511627777", "0 to 1099511627776"),
        ("memory.compiler_bytes", "1099511627777", "0 to 1099511627776"),
        ("memory.kernel_bytes", "1099511627777", "0 to 1099511627776"),
        ("memory.max_block_bytes", "0", "65536 to 1099511627776"),
        ("memory.slot_count", "0", "2 to 64"),
        ("rates.flops_per_s", "0.0", "1e8 to 1e18"),
        ("rates.flops_per_s", "-1.0", "1e8 to 1e18"),
        ("rates.flops_per_s", "nan", "1e8 to 1e18"),
        ("rates.half_flops_per_s", "1.0", "1e8 to 1e18"),
        ("rates.memory_bytes_per_s", "inf", "1e8 to 1e18"),
        ("rates.io_bytes_per_s", "0.0", "1e6 to 1e18"),
        ("rates.launch_ns", "1000000001", "0 to 1000000000"),
        ("rates.max_dispatch_ms", "3600001", "0 to 3600000"),
        ("rates.variant_share.naive", "0.0", "0.0001 to 10"),
        ("rates.variant_share.nosuchvariant", "1.0", "tiled"),
    ];

    #[test]
    fn a_wrong_value_is_told_with_its_field_and_what_is_allowed() {
        for (path, value, allowed) in WRONG {
            let said = said(path, value);
            let name = path.rsplit('.').next().unwrap();
            assert!(said.contains(name) && said.contains(allowed), "{path} = {value}: {said}");
            assert!(!said.contains('\n'), "{said}");
        }
    }

    #[test]
    fn every_number_of_a_profile_is_checked() {
        let (_, text) = DeviceProfile::text("mali-g78").unwrap();
        let profile: Table = toml::from_str(&text).unwrap();
        for section in ["target", "memory", "rates"] {
            let is_number = |value: &Value| value.is_integer() || value.is_float();
            let fields = profile[section].as_table().unwrap();
            for (name, _) in fields.iter().filter(|(_, value)| is_number(value)) {
                let path = format!("{section}.{name}");
                assert!(WRONG.iter().any(|(wrong, ..)| *wrong == path), "{path} is not checked");
            }
        }
    }

    #[test]
    fn a_tuning_of_an_unknown_variant_is_told() {
        let entry = |op: &str, variant: &str, rows: u32| {
            said(
                "target.tuning",
                &format!(
                    "[{{ op = {op:?}, problem = '', variant = {variant:?}, tile_rows = {rows}, \
                     tile_columns = 4 }}]"
                ),
            )
        };
        assert_eq!(entry("matmul", "naive", 4), "fits");
        assert!(entry("nosuchop", "naive", 4).starts_with("target.tuning[0].op is \"nosuchop\""));
        assert!(entry("matmul", "none", 4).starts_with("target.tuning[0].variant is \"none\""));
        assert_eq!(
            entry("matmul", "naive", 0),
            "target.tuning[0].tile_rows is 0, it must be 1 to 256"
        );
    }
}
