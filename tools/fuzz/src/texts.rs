//! Descriptions, prompts and arguments.

use std::ffi::OsString;
use std::sync::OnceLock;

use kiln_compiler::device::DeviceProfile;
use kiln_graphs::{config, text_encoder, unet, vae_decoder};
use kiln_runtime::cli::Command;
use kiln_runtime::pipeline::emphasis::pieces;
use kiln_runtime::pipeline::tokenizer::{CONTEXT_LENGTH, Tokenizer};

use crate::{Target, expect_line, file, stored};

/// A device profile.
pub const PROFILE: Target = Target {
    name: "profile",
    seeds: || DeviceProfile::names().map(profile).collect(),
    run: |folder, bytes| {
        let path = file(folder, "own.toml", bytes);
        if let Err(error) = DeviceProfile::load(&path.to_string_lossy()) {
            expect_line(&format!("{error:#}"));
        }
    },
};

fn profile(name: &str) -> Vec<u8> {
    DeviceProfile::text(name).expect("it ships").1.into_bytes()
}

/// The description of a model. One that is accepted makes graphs, or says why not.
pub const MODEL: Target = Target {
    name: "model",
    seeds: || {
        ["emoji-256", "sd15-inpaint"].map(|n| stored(&format!("graphs/models/{n}.toml"))).into()
    },
    run: |_, bytes| {
        let Ok(text) = str::from_utf8(bytes) else { return };
        match config::parse("own", text) {
            Ok(model) => {
                let graphs = [text_encoder(&model, 1), unet(&model, 2), vae_decoder(&model)];
                for error in graphs.into_iter().filter_map(Result::err) {
                    expect_line(&error.to_string());
                }
            }
            Err(error) => expect_line(&error.what),
        }
    },
};

/// A prompt. Weights are finite, and every token is of the vocabulary.
pub const PROMPT: Target = Target {
    name: "prompt",
    seeds: || {
        let prompts = ["a (red:1.3) [house] \\(by\\) the ((sea))", "Caf\u{e9} \u{6771}&amp; <3's"];
        prompts.map(|prompt| prompt.as_bytes().to_vec()).into()
    },
    run: |_, bytes| {
        let text = String::from_utf8_lossy(bytes);
        let pieces = pieces(&text);
        assert!(!pieces.is_empty() && pieces.iter().all(|piece| !piece.weight.is_nan()));
        let parts = pieces.iter().map(|piece| &*piece.text);
        let (encoding, part_of) = tokenizer().tokenize_parts(parts);
        assert_eq!(encoding.ids.len(), part_of.len());
        assert!((2..=CONTEXT_LENGTH).contains(&encoding.ids.len()));
        assert!(encoding.ids.iter().all(|&id| id < 49_408));
    },
};

fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    let merges = include_bytes!("../../../graphs/assets/clip_merges.txt");
    TOKENIZER.get_or_init(|| Tokenizer::from_merges(merges).expect("they are CLIP's"))
}

/// The arguments of `kiln-run`, a line each.
pub const ARGUMENTS: Target = Target {
    name: "arguments",
    seeds: || {
        let arguments =
            "x.kiln\n--prompt\na\n--steps=4\n-W\n512\n--cfg-scale\n7.5\n--seed\n-1\n-o\nx.png";
        vec![arguments.into(), b"x.kiln\n--prepare\n--cache\nfolder".into(), b"--help".into()]
    },
    run: |_, bytes| {
        let lines = bytes.split(|byte| *byte == b'\n');
        let arguments = lines.map(|line| OsString::from(&*String::from_utf8_lossy(line)));
        if let Err(error) = Command::parse(arguments) {
            expect_line(&error);
        }
    },
};
