//! Weights in prompts, against transformers and the formula of AUTOMATIC1111's web UI
//! (`models/make_weighted.py`).

mod harness;

use harness::{arg, emoji, kiln_ok, npy, scratch, shared};
use kiln_testkit::{bounds, relative_l2};

/// The prompt of the script.
const PROMPT: &str = r"a (red:1.4) [[heart]], (on (snow)) \(winter\)";
/// Values of the embedding of a prompt.
const EMBEDDING: usize = 77 * 192;

#[test]
fn weighted_words_are_those_of_the_web_ui() {
    let (bundle, folder) = (shared(), scratch("prompts"));
    let picture = folder.join("out.png");
    let run = |prompt: &str, options: &[&str]| {
        let run = ["run", arg(&bundle), "-p", prompt, "--steps", "1", "--decoder", "tiny"];
        let files = ["--dump", arg(&folder), "-o", arg(&picture)];
        kiln_ok(&[&run[..], &files, options].concat());
        let embedding = npy(&folder.join("embedding.npy"));
        (embedding[EMBEDDING..].to_vec(), npy(&folder.join("latent_001.npy")))
    };
    let (found, weighted) = run(PROMPT, &[]);
    let error = relative_l2(&found, &npy(&emoji("0-weighted-text.npy")));
    println!("weighted embedding: relative L2 {error:.1e}");
    assert!(error <= bounds::NETWORK_FP32, "relative L2 {error:e}");
    assert!(!kiln_ok(&["show", arg(&picture)]).contains("plain prompt"));

    // The U-Net reads what was weighted: with equal embeddings, latents are equal bit for bit.
    let (same, plain) = run("a red heart, on snow (winter)", &["--plain-prompt"]);
    let change = relative_l2(&plain, &weighted);
    println!("latent after a step: relative change {change:.1e}");
    assert!(relative_l2(&same, &found) > 0.01 && change > 1e-5, "{change:e}");
    assert!(kiln_ok(&["show", arg(&picture)]).contains("plain prompt     true"));
    // Brackets are tokens of their own there.
    let (brackets, _) = run("a (red) heart", &["--plain-prompt"]);
    let (words, _) = run("a red heart", &[]);
    assert!(relative_l2(&brackets, &words) > 0.01);
}
