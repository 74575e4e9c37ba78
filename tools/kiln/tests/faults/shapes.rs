//! Tensors have the shape that is asked for, not only its number of elements.

use super::harness::{arg, kiln_err, kiln_ok, npy, write_npy, write_shaped_npy};
use super::{bundle, empty};

#[test]
fn a_latent_has_the_models_shape() {
    let folder = empty("latent");
    let (latent, picture) = (folder.join("x.npy"), folder.join("o.png"));
    let run = ["run", arg(bundle()), "-p", "a", "--steps", "1", "--latent", arg(&latent)];
    for shape in [&[1, 32, 32, 4][..], &[4, 1024], &[2, 4, 32, 32], &[1, 4, 32, 31]] {
        write_shaped_npy(&latent, shape, 0.5);
        let line = kiln_err(&[&run[..], &["-o", arg(&picture)]].concat(), 2);
        let expected =
            format!("x.npy: has shape {shape:?}, a latent of this model has [1, 4, 32, 32]");
        assert!(line.contains(&expected), "{line}");
    }
    write_shaped_npy(&latent, &[1, 4, 32, 32], f32::NAN);
    let line = kiln_err(&[&run[..], &["-o", arg(&picture)]].concat(), 2);
    assert!(line.contains("x.npy: value 0 is NaN"), "{line}");
    write_shaped_npy(&latent, &[4, 32, 32], 0.5);
    kiln_ok(&[&run[..], &["-o", arg(&picture)]].concat());
}

#[test]
fn eval_asks_for_the_shape_that_it_takes() {
    let folder = empty("eval");
    let at = |name: &str| folder.join(name);
    let (last, first, time) = (at("last.npy"), at("first.npy"), at("t.npy"));
    write_shaped_npy(&last, &[1, 32, 32, 4], 0.5);
    write_shaped_npy(&first, &[1, 4, 32, 32], 0.5);
    write_npy(&time, &[951.0]);
    let output = at("o.npy");
    let eval = ["eval", arg(bundle()), "--network", "decoder", "--output", arg(&output), "--input"];
    let input = |path| format!("latent={}", arg(path));
    let line = kiln_err(&[&eval[..], &[&input(&last)]].concat(), 2);
    let expected = "input \"latent\" has shape [1, 32, 32, 4]; it takes [1, 4, 32, 32]";
    assert!(line.contains(expected), "{line}");
    write_shaped_npy(&last, &[64, 4, 32, 32], 0.5);
    let line = kiln_err(&[&eval[..], &[&input(&last)]].concat(), 2);
    assert!(line.contains("has shape [64, 4, 32, 32], over the 8192 values"), "{line}");
    kiln_ok(&[&eval[..], &[&input(&first)]].concat());
    assert_eq!(npy(&output).len(), 3 * 256 * 256);
    let missing = ["eval", arg(bundle()), "--network", "unet", "--output", arg(&output), "--input"];
    let line = kiln_err(&[&missing[..], &[&format!("timestep={}", arg(&time))]].concat(), 2);
    assert!(line.contains("needs \"latent\" of shape [") && line.contains("4, 32, 32]"), "{line}");
}
