//! Computes rows of a result on the host's threads, for references that are slow on one thread.

use rayon::prelude::*;

/// Smallest work, in multiply-adds, that is divided over threads. Less work costs more to divide
/// than it saves.
const WORTHWHILE_WORK: usize = 1 << 18;

/// Divides `out` into blocks of `rows_per_block` rows of `row_len` elements and calls
/// `fill(first_row, block)` on each, on the host's threads. `work` is the total cost in
/// multiply-adds. Little work stays on the calling thread.
pub(crate) fn fill_rows(
    out: &mut [f32],
    row_len: usize,
    rows_per_block: usize,
    work: usize,
    fill: impl Fn(usize, &mut [f32]) + Sync,
) {
    let block_len = (row_len * rows_per_block).max(1);
    let run = |(block, part): (usize, &mut [f32])| fill(block * rows_per_block, part);
    if work < WORTHWHILE_WORK {
        out.chunks_mut(block_len).enumerate().for_each(run);
    } else {
        out.par_chunks_mut(block_len).enumerate().for_each(run);
    }
}

/// Dot product. Products are summed in `f32` over runs of eight per lane, and the runs in `f64`, also
/// per lane, so that compilers use vectors for both.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
    const LANES: usize = 16;
    const RUN: usize = 8 * LANES;
    let mut sums = [0.0f64; LANES];
    let mut total = 0.0f64;
    for (a, b) in a.chunks(RUN).zip(b.chunks(RUN)) {
        let mut lanes = [0.0f32; LANES];
        let (a16, b16) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
        let tail: f64 =
            a16.remainder().iter().zip(b16.remainder()).map(|(x, y)| f64::from(x * y)).sum();
        for (x, y) in a16.zip(b16) {
            for i in 0..LANES {
                lanes[i] += x[i] * y[i];
            }
        }
        for i in 0..LANES {
            sums[i] += f64::from(lanes[i]);
        }
        total += tail;
    }
    total + sums.iter().sum::<f64>()
}

/// Matrix product of `rows x k` by `weights` `[n, k]` transposed. `gather(row, window)` writes the
/// `k` elements of a row. They are zero before.
pub(crate) fn contract(
    rows: usize,
    n: usize,
    weights: &[f32],
    gather: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    const BLOCK_ROWS: usize = 16;
    let k = weights.len() / n.max(1);
    let mut out = vec![0.0f32; rows * n];
    fill_rows(&mut out, n, BLOCK_ROWS, rows * n * k, |first, block| {
        let mut windows = vec![0.0f32; block.len() / n * k];
        for (i, window) in windows.chunks_exact_mut(k).enumerate() {
            gather(first + i, window);
        }
        for (column, filter) in weights.chunks_exact(k).enumerate() {
            for (i, window) in windows.chunks_exact(k).enumerate() {
                block[i * n + column] = dot(filter, window) as f32;
            }
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_filled_once_with_its_index() {
        for (rows, work) in [(0, 0), (1, 0), (7, usize::MAX), (64, usize::MAX), (65, 1)] {
            let mut out = vec![0.0; rows * 3];
            fill_rows(&mut out, 3, 4, work, |first, block| {
                for (i, row) in block.chunks_mut(3).enumerate() {
                    row.iter_mut().for_each(|v| *v += (first + i + 1) as f32);
                }
            });
            let expected: Vec<f32> = (0..rows).flat_map(|r| [(r + 1) as f32; 3]).collect();
            assert_eq!(out, expected, "{rows} rows");
        }
    }

    #[test]
    fn dot_of_any_length_is_exact_on_small_integers() {
        for n in [0, 1, 15, 16, 17, 127, 128, 129, 1000] {
            let a: Vec<f32> = (0..n).map(|i| (i % 7) as f32).collect();
            let b: Vec<f32> = (0..n).map(|i| (i % 5) as f32 - 2.0).collect();
            let expected: i64 = (0..n as i64).map(|i| (i % 7) * (i % 5 - 2)).sum();
            assert_eq!(dot(&a, &b), expected as f64, "length {n}");
        }
    }
}
