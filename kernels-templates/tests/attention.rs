//! Attention against its reference.

use kiln_ir::ops::attention::{Attention, Columns};
use kiln_testkit::{Tolerance, check};

fn separate(n: usize, lq: usize, lk: usize, heads: usize, d: usize, causal: bool) {
    let (q, k) = ([n, lq, heads * d], [n, lk, heads * d]);
    check(Attention::separate(heads * d, heads, causal), &[&q, &k, &k], 1.0, Tolerance::ATTENTION);
}

#[test]
fn small_attention_of_one_token() {
    separate(1, 1, 1, 1, 1, false);
    separate(1, 1, 1, 2, 16, true);
}

#[test]
fn small_attention_of_odd_extents() {
    separate(2, 7, 5, 3, 11, false);
    separate(1, 13, 37, 2, 40, false);
}

#[test]
fn small_causal_attention() {
    separate(2, 77, 77, 2, 16, true);
}

#[test]
fn head_widths() {
    for d in [8, 24, 64, 80, 128] {
        separate(1, 50, 131, 2, d, false);
    }
}

#[test]
fn causal_over_many_blocks() {
    separate(1, 300, 300, 1, 64, true);
}

#[test]
fn many_queries_of_a_work_item() {
    separate(1, 500, 70, 4, 16, false);
    separate(1, 500, 500, 4, 16, true);
}

#[test]
fn wide_head_of_the_decoder() {
    separate(1, 35, 70, 1, 512, false);
    separate(2, 32, 32, 1, 256, false);
}

#[test]
fn column_ranges_of_shared_inputs() {
    let at = |input, start| Columns { input, start };
    let merged = Attention {
        channels: 96,
        heads: 3,
        causal: false,
        q: at(0, 0),
        k: at(0, 96),
        v: at(0, 192),
    };
    check(merged, &[&[2, 5, 7, 288]], 1.0, Tolerance::ATTENTION);
    let odd =
        Attention { channels: 34, heads: 2, causal: true, q: at(0, 3), k: at(1, 1), v: at(1, 36) };
    check(odd, &[&[1, 70, 41], &[1, 70, 71]], 1.0, Tolerance::ATTENTION);
}

#[test]
fn scores_far_apart() {
    let op = Attention::separate(64, 1, false);
    let shape: &[usize] = &[1, 40, 64];
    // Scores reach 8^2 * 64 / 8. Their rounding errors of 1e-4 are relative errors of the weights.
    check(op, &[shape, shape, shape], 8.0, Tolerance { abs: 2e-3, rel: 1e-3 });
}
