//! Counts of kernels' machine code, for devices whose instruction set a compiler at hand knows.
//!
//! `make mali BLESS=1` writes a table: a line for each kernel, under the name that it has in
//! programs. The name ends with a hash of the source, so a kernel that has changed since is not
//! found. The counts of another kernel of the same variant are then scaled.

use anyhow::{Context, Result, bail};
use kiln_bundle::rationale::KernelCode;
use kiln_kernels::{Launch, program};

/// The tables that ship with Kiln. To add one: its file and its line here.
const TABLES: &[(&str, &str)] =
    &[("valhall-v9", include_str!("../../profiles/code/valhall-v9.tsv"))];

/// Counts of kernels' machine code. Empty: none are known.
#[derive(Clone, Debug, Default)]
pub struct CodeTable {
    rows: Vec<Row>,
}

#[derive(Clone, Debug)]
struct Row {
    /// Name of the kernel in programs.
    name: String,
    /// Multiply-add instructions of a work-item. One of FP16 has two products.
    multiply_adds: u64,
    code: KernelCode,
}

impl CodeTable {
    /// Names of the tables that ship with Kiln.
    pub fn names() -> impl Iterator<Item = &'static str> {
        TABLES.iter().map(|(name, _)| *name)
    }

    /// The table with a name.
    ///
    /// Errors: no table has the name.
    pub fn load(name: &str) -> Result<Self> {
        let Some((_, text)) = TABLES.iter().find(|(known, _)| *known == name) else {
            bail!("no table of machine code '{name}'");
        };
        // A comment and the names of the columns come first.
        let rows = text.lines().skip(2).map(Row::read).collect::<Result<_>>();
        Ok(Self { rows: rows.with_context(|| format!("table of machine code '{name}'"))? })
    }

    /// Whether the table has no kernels.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The machine code of a launch's kernel: its own counts, or those of the kernel of the same
    /// variant with the most similar number of multiply-adds, scaled. `None` if the table has no
    /// kernel of the variant.
    pub fn of(&self, launch: &Launch) -> Option<KernelCode> {
        if self.is_empty() {
            return None;
        }
        let name = program::name(&launch.source, launch.entry);
        if let Some(row) = self.rows.iter().find(|row| row.name == name) {
            return Some(row.code.clone());
        }
        let flops = launch.work_items().saturating_mul(if launch.half_arithmetic { 4 } else { 2 });
        let multiply_adds = launch.flops as f64 / flops.max(1) as f64;
        let factor = |row: &Row| multiply_adds / row.multiply_adds as f64;
        let alike = self.rows.iter().filter(|row| row.variant() == launch.entry);
        let unlike = |row: &&Row| factor(row).ln().abs();
        let row = alike.min_by(|a, b| unlike(a).total_cmp(&unlike(b)))?;
        let scaled = |cycles: u64| (cycles as f64 * factor(row)).round() as u64;
        Some(KernelCode {
            scaled_from: Some(row.name.clone()),
            busiest_cycles: scaled(row.code.busiest_cycles),
            issued_cycles: scaled(row.code.issued_cycles),
            ..row.code.clone()
        })
    }
}

impl Row {
    fn read(line: &str) -> Result<Self> {
        let cells: Vec<&str> = line.split('\t').collect();
        let [name, pipe, numbers @ ..] = &cells[..] else { bail!("not a row: {line}") };
        let numbers = numbers.iter().map(|cell| cell.parse()).collect::<Result<Vec<u32>, _>>();
        let numbers = numbers.with_context(|| format!("not numbers: {line}"))?;
        let [registers, occupancy_percent, spills, multiply_adds, busiest, issued] = numbers[..]
        else {
            bail!("not six numbers: {line}");
        };
        let code = KernelCode {
            scaled_from: None,
            pipe: pipe.to_string(),
            registers,
            occupancy_percent,
            spills,
            busiest_cycles: busiest.into(),
            issued_cycles: issued.into(),
        };
        Ok(Self { name: name.to_string(), multiply_adds: multiply_adds.into(), code })
    }

    /// The name without the hash of the source.
    fn variant(&self) -> &str {
        self.name.rsplit_once('_').map_or("", |(variant, _)| variant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "__kernel void tiled() {}";

    /// A launch of 10 work-items, with as many multiply-adds each.
    fn launch(entry: &'static str, source: &str, multiply_adds: u64) -> Launch {
        let flops = 10 * 4 * multiply_adds;
        let launch = Launch::new(source.into(), entry, vec![], [10, 1, 1], None);
        Launch { flops, half_arithmetic: true, ..launch }
    }

    fn table() -> CodeTable {
        let own = program::name(SOURCE, "tiled");
        let lines = [
            format!("{own}\tFMA\t58\t50\t0\t1000\t1200\t2000"),
            "tiled_000000\tCVT\t64\t50\t9\t10\t30\t50".to_string(),
        ];
        let rows = lines.iter().map(|line| Row::read(line).unwrap()).collect();
        CodeTable { rows }
    }

    #[test]
    fn a_kernel_has_its_own_counts() {
        let code = table().of(&launch("tiled", SOURCE, 7)).unwrap();
        assert_eq!((code.busiest_cycles, code.issued_cycles), (1200, 2000));
        assert_eq!((code.scaled_from, code.registers), (None, 58));
    }

    #[test]
    fn a_changed_kernel_has_those_of_the_most_similar_one() {
        let table = table();
        let code = |multiply_adds| table.of(&launch("tiled", "changed", multiply_adds)).unwrap();
        let (small, large) = (code(20), code(500));
        assert_eq!((small.busiest_cycles, small.issued_cycles, small.spills), (60, 100, 9));
        assert_eq!(small.scaled_from.as_deref(), Some("tiled_000000"));
        assert_eq!((large.busiest_cycles, large.issued_cycles, large.spills), (600, 1000, 0));
        assert_eq!(table.of(&launch("naive", SOURCE, 7)), None);
    }

    #[test]
    fn every_table_is_read() {
        for name in CodeTable::names() {
            let table = CodeTable::load(name).unwrap();
            assert!(!table.rows.is_empty(), "{name}");
            for row in &table.rows {
                let KernelCode { busiest_cycles, issued_cycles, .. } = row.code;
                assert!(0 < row.multiply_adds && row.multiply_adds <= busiest_cycles, "{row:?}");
                assert!(busiest_cycles <= issued_cycles, "{row:?}");
            }
        }
        assert!(CodeTable::load("unknown").is_err());
    }
}
