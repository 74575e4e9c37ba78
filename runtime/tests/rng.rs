//! Noise against what PyTorch drew.

use std::fs::File;
use std::path::Path;

use kiln_runtime::npy;
use kiln_runtime::pipeline::rng::NormalRng;

#[test]
fn initial_latents_equal_torch() {
    for (prompt, seed) in [(0, 100), (1, 101)] {
        let path = format!("../models/emoji-256-golden/{prompt}-init.npy");
        let file = File::open(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("a golden");
        let golden = npy::read::<f32>(file).expect("latents");
        assert_eq!(golden.shape, [4, 32, 32]);
        let mut latents = vec![0.0; golden.values.len()];
        NormalRng::from_seed(seed).fill(&mut latents);
        let differences = latents.iter().zip(&golden.values).map(|(a, b)| (a - b).abs());
        let worst = differences.fold(0.0, f32::max);
        assert!(worst <= 1e-6, "seed {seed}: off by {worst}");
    }
}
