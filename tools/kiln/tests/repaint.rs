//! Pictures repainted under a mask, against the inpainting pipeline of diffusers.

mod harness;

use harness::{arg, compiled, emoji, kiln_err, kiln_ok, npy, scratch, shared};
use kiln_testkit::{bounds, native, relative_l2};
use std::path::{Path, PathBuf};

fn bundle() -> PathBuf {
    use std::sync::OnceLock;
    static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
    BUNDLE.get_or_init(shared).clone()
}

/// Repaints the disc of `1-mask.png` in `1.png`.
fn repaint(folder: &Path, options: &[&str]) -> PathBuf {
    let (picture, init, mask) = (folder.join("out.png"), emoji("1.png"), emoji("1-mask.png"));
    let bundle = bundle();
    let fixed = ["run", arg(&bundle), "-p", "a red heart", "--steps", "8", "-o", arg(&picture)];
    let from = ["--init-image", arg(&init), "--mask", arg(&mask), "--dump", arg(folder)];
    kiln_ok(&[&fixed[..], &from[..], options].concat());
    picture
}

fn expect_latents(folder: &Path, steps: usize) {
    let expected = npy(&emoji(&format!("0-inpaint-latents-{steps}.npy")));
    let found = npy(&folder.join(format!("latent_{steps:03}.npy")));
    let error = relative_l2(&found, &expected);
    println!("{steps} steps: relative L2 {error:.2e}");
    assert!(error <= bounds::RUN_FP32, "{steps} steps: relative L2 {error:e}");
}

#[test]
fn blended_latents_agree_and_the_rest_of_the_picture_is_the_given_one() {
    let folder = scratch("repaint/half");
    let picture = repaint(&folder, &["--strength", "0.5"]);
    expect_latents(&folder, 4);
    let [given, mask, made] =
        [emoji("1.png"), emoji("1-mask.png"), picture.clone()].map(|path| native::rgba(&path));
    let pixels = || given.chunks(4).zip(mask.chunks(4)).zip(made.chunks(4));
    let changed = |share: u8| pixels().filter(|((a, mask), b)| mask[0] == share && a != b).count();
    assert_eq!(changed(0), 0, "pixels outside the mask changed");
    assert!(changed(255) > 5000, "{} pixels inside the mask changed", changed(255));
    let text = kiln_ok(&["show", arg(&picture), "--json"]);
    let text: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let record = text["text"]["mask"].as_str().expect("it is recorded");
    assert!(record.starts_with("0.23") && record.contains("of the picture, XXH3 "), "{record}");
}

/// Without a strength, nothing of the hidden part is left to begin with.
#[test]
fn all_steps_begin_with_noise_alone() {
    let folder = scratch("repaint/whole");
    repaint(&folder, &["--sampler", "euler"]);
    expect_latents(&folder, 8);
}

#[test]
fn the_lines_of_a_batch_have_pictures_and_masks_of_their_own() {
    let folder = scratch("repaint/batch");
    let at = |name: &str| folder.join(name);
    let [init, mask] = ["1.png", "1-mask.png"].map(emoji);
    let fields = |output: &str, more: &str| {
        let (init, output) = (arg(&init).to_owned(), arg(&at(output)).to_owned());
        format!("{{\"prompt\": \"a\", \"init_image\": {init:?}, \"output\": {output:?}{more}}}\n")
    };
    let masked = format!(", \"strength\": 0.5, \"mask\": {:?}", arg(&mask));
    let lines = fields("one.png", ", \"strength\": 0.5") + &fields("two.png", &masked);
    let _ = [at("one.png"), at("two.png")].map(std::fs::remove_file);
    std::fs::write(at("lines.jsonl"), lines).expect("the folder can be written");
    let (bundle, file) = (bundle(), at("lines.jsonl"));
    kiln_ok(&["run", arg(&bundle), "--prompts", arg(&file), "--steps", "2"]);
    let [given, one, two] =
        [init.clone(), at("one.png"), at("two.png")].map(|path| native::rgba(&path));
    assert!(given[..4] == two[..4] && given != two && one != two);
    // A line's picture is no output.
    std::fs::write(&file, fields("one.png", "").replace("golden/1.png", "golden/none.png"))
        .expect("the folder can be written");
    let line = kiln_err(&["run", arg(&bundle), "--prompts", arg(&file)], 2);
    assert!(line.contains("lines.jsonl line 1") && line.contains("none.png"), "{line}");
}

#[test]
fn masks_of_no_use_are_refused() {
    let folder = scratch("repaint/refused");
    let gray = |name: &str, (width, height): (u32, u32), level: u8| {
        let path = folder.join(name);
        let file = std::fs::File::create(&path).expect("the folder can be written");
        let mut encoder = png::Encoder::new(file, width, height);
        encoder.set_color(png::ColorType::Grayscale);
        let mut writer = encoder.write_header().expect("it can be written");
        let pixels = vec![level; (width * height) as usize];
        writer.write_image_data(&pixels).expect("it can be written");
        path
    };
    let (bundle, plain, init) = (bundle(), compiled(&[]), emoji("1.png"));
    let refused = |bundle: &Path, mask: &Path, init: &[&str], expected: &str| {
        let fixed = ["run", arg(bundle), "-p", "x", "-o", "/dev/null", "--mask", arg(mask)];
        let line = kiln_err(&[&fixed[..], init].concat(), 2);
        assert!(line.contains(expected), "{line}");
    };
    let from = ["--init-image", arg(&init)];
    let wide = gray("wide.png", (64, 32), 255);
    refused(&bundle, &wide, &from, "wide.png has 64 x 32 pixels");
    refused(&bundle, &gray("black.png", (64, 64), 0), &from, "the mask has no white");
    refused(&bundle, &gray("white.png", (64, 64), 255), &from, "white everywhere");
    refused(&bundle, &plain, &from, "not a PNG, JPEG or WebP file");
    let mask = emoji("1-mask.png");
    refused(&plain, &mask, &from, "compile it with --with-encoder");
    let output = harness::kiln(&["run", arg(&bundle), "-p", "x", "-o", "o.png", "--mask", "m.png"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && said.contains("--init-image"), "{said}");
}
