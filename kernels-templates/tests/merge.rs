//! Weights changed on the device are those of the changed constant, packed.

use kiln_ir::DType;
use kiln_kernels::merge::Merge;
use kiln_kernels::packing::{Order, Packing, QuantizedPanel};
use kiln_runtime::probe::{Probe, ProbeArgument, ProbeLaunch};

const RANK: usize = 3;
const STRENGTH: f32 = -0.75;

/// Values of one sign or the other, of size one.
fn values(seed: usize, count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 + seed * 101) % 97) as f32 / 48.0 - 1.0).collect()
}

/// The packed weights after a change on the device, and the packed constant that was changed.
fn change(probe: &Probe, packing: Packing, shape: &[usize]) -> (Vec<u8>, Vec<f32>) {
    let merge = Merge::of(packing, shape).unwrap().expect("there is a kernel");
    let (n, k) = (shape[0], shape[1..].iter().product::<usize>());
    let (weights, up, down) = (values(1, n * k), values(2, n * RANK), values(3, RANK * k));
    let ups = merge.up.pack(&[n, RANK], &up);
    let downs = merge.down.pack(&[&[RANK], &shape[1..]].concat(), &down);
    assert_eq!(downs.len(), RANK * merge.k * 4);
    let scalars = [0, ups.len() as u32 / 4, merge.k as u32, RANK as u32];
    let scalars = scalars.map(ProbeArgument::U32);
    let panels = merge.panels as u64;
    let [first, second] = merge.global;
    let is_quantized = matches!(packing, Packing::QuantizedPanels { .. });
    let mut packed = packing.pack(shape, &weights);
    let launch = ProbeLaunch {
        source: merge.source.to_string(),
        options: "-w",
        entry: merge.entry.into(),
        args: [&[0, 1].map(ProbeArgument::Buffer)[..], &scalars, &[ProbeArgument::F32(STRENGTH)]]
            .concat(),
        global: if is_quantized { [first, second, panels] } else { [first, panels, 1] },
        local: None,
    };
    let factors = [ups, downs].concat();
    let prepared = probe.prepare(&[launch], &[packed.clone(), factors]).unwrap();
    probe.time(&prepared, 1).unwrap();
    probe.read(&prepared, 0, &mut packed).unwrap();
    let product = |i: usize| {
        let pairs = (0..RANK).map(|r| up[i / k * RANK + r] * down[r * k + i % k]);
        pairs.sum::<f32>()
    };
    (packed, (0..n * k).map(|i| weights[i] + STRENGTH * product(i)).collect())
}

fn numbers(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        DType::F16 => {
            let words = bytes.as_chunks().0.iter();
            words.map(|word| half::f16::from_le_bytes(*word).to_f32()).collect()
        }
        _ => bytes.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect(),
    }
}

#[test]
fn weights_of_every_order_are_changed() {
    let probe = Probe::open(&kiln_testkit::device()).unwrap();
    let (linear, conv) = (&[20, 12][..], &[10, 6, 3, 3][..]);
    for dtype in [DType::F32, DType::F16] {
        let panels = |width, gated| Packing::Panels { width, dtype, gated };
        let winograd = |outputs| Packing::Winograd { outputs, width: 8, dtype };
        let mut cases = vec![
            (Packing::RowMajor(dtype), linear),
            (Packing::RowMajor(dtype), conv),
            (panels(8, false), linear),
            (panels(8, true), linear),
            (panels(16, false), conv),
            (winograd(2), conv),
            (winograd(4), conv),
        ];
        if dtype == DType::F16 {
            cases.push((Packing::PairedPanels { width: 8, gated: false }, linear));
            cases.push((Packing::PairedPanels { width: 8, gated: true }, linear));
        }
        for (packing, shape) in cases {
            let (found, wanted) = change(&probe, packing, shape);
            let [found, expected] =
                [found, packing.pack(shape, &wanted)].map(|bytes| numbers(dtype, &bytes));
            let limit = if dtype == DType::F16 { 4e-3 } else { 1e-5 };
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let off = (found - expected).abs();
                assert!(off <= limit * expected.abs().max(1.0), "{packing:?} {i}: {off}");
            }
        }
    }
}

/// The value of each stored weight: its scale times its number.
#[test]
fn quantized_weights_have_new_scales() {
    let probe = Probe::open(&kiln_testkit::device()).unwrap();
    for (order, scale_group) in
        [(Order::Rows, 12), (Order::Rows, 4), (Order::Pairs, 6), (Order::UnsignedQuads, 12)]
    {
        let (width, shape) = (8, [20, 24]);
        let packing = Packing::QuantizedPanels { width, scale_group, gated: false, order };
        let (found, wanted) = change(&probe, packing, &shape);
        let panel = QuantizedPanel::new(shape[1], width, scale_group);
        let run = order.run();
        for (i, expected) in wanted.iter().enumerate() {
            let (row, k) = (i / shape[1], i % shape[1]);
            let (bytes, lane) = (&found[row / width * panel.len..], row % width);
            let scale = k / scale_group * width + lane;
            let scale = numbers(DType::F32, &bytes[scale * 4..][..4])[0];
            let byte = bytes[panel.weights_at + (k / run * width + lane) * run + k % run];
            let weight = f32::from(byte.wrapping_sub(order.excess()) as i8);
            let off = (scale * weight - expected).abs();
            // Half a step of the old scale, and half of the new one.
            assert!(off <= 1.5 * scale.max(1.0 / 127.0), "{order:?} {i}: {off} of {expected}");
        }
    }
}
