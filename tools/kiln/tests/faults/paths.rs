//! Outputs are checked before the work, and are no file that the command reads.

use super::harness::{arg, emoji, kiln_err};
use super::{bundle, empty};
use std::fs;
use std::path::Path;

/// A command that would write over `victim` is refused, and `victim` stays as it is.
fn refused(victim: &Path, args: &[&str]) {
    let before = fs::read(victim).expect("it was written");
    let line = kiln_err(args, 2);
    assert!(line.contains("is the same file as"), "{args:?}: {line}");
    assert!(fs::read(victim).expect("it is there") == before, "{args:?}");
}

#[test]
fn no_command_replaces_what_it_reads() {
    let folder = empty("same");
    let at = |name: &str| folder.join(name);
    let (weights, checkpoint) = (at("w.safetensors"), at("c.kiln"));
    fs::write(&weights, "a checkpoint").expect("the target folder can be written");
    fs::hard_link(&weights, &checkpoint).expect("a link");
    let compile = ["compile", "--model", "emoji-256", "--weights"];
    for output in [&weights, &checkpoint] {
        refused(&weights, &[&compile[..], &[arg(&weights), "-o", arg(output)]].concat());
    }
    let encoder = ["--with-encoder", "--encoder-weights", arg(&weights), "-o", arg(&checkpoint)];
    let shipped = "models/emoji-256.safetensors.zst";
    refused(&weights, &[&compile[..], &[shipped], &encoder[..]].concat());
    // A file of a checkpoint's folder.
    fs::create_dir_all(at("model/unet")).expect("a folder");
    let shard = at("model/unet/x.kiln");
    fs::write(&shard, "a shard").expect("written");
    refused(&shard, &[&compile[..], &[arg(&at("model")), "-o", arg(&shard)]].concat());
    let profile = at("p.toml");
    fs::write(&profile, "a profile").expect("written");
    let tune = ["tune", "--model", "emoji-256", "--profile", arg(&profile), "-o", arg(&profile)];
    refused(&profile, &tune);

    let copy = at("x.kiln");
    fs::copy(bundle(), &copy).expect("a copy");
    let twisted = at("model/../x.kiln");
    let run = ["run", arg(&copy), "-p", "a"];
    refused(&copy, &[&run[..], &["-o", arg(&twisted)]].concat());
    refused(&copy, &[&run[..], &["-o", "/dev/null", "--profile", arg(&copy)]].concat());
    refused(&copy, &["inspect", arg(&copy), "--html", arg(&copy)]);
    let ids = at("ids.npy");
    fs::copy(emoji("0-init.npy"), &ids).expect("a copy");
    let input = format!("tokens={}", arg(&ids));
    let eval = ["eval", arg(&copy), "--network", "text_encoder", "--input", &input];
    refused(&ids, &[&eval[..], &["--output", arg(&ids)]].concat());
    refused(
        &ids,
        &[&run[..], &["-o", "/dev/null", "--latent", arg(&ids), "--report", arg(&ids)]].concat(),
    );
    let dump = at("dump");
    fs::create_dir(&dump).expect("a folder");
    let latent = dump.join("latent_000.npy");
    fs::copy(&ids, &latent).expect("a copy");
    refused(
        &latent,
        &[&run[..], &["-o", "/dev/null", "--latent", arg(&latent), "--dump", arg(&dump)]].concat(),
    );
    let picture = at("h.png");
    fs::copy(emoji("1.png"), &picture).expect("a copy");
    refused(&picture, &[&run[..], &["-o", arg(&picture), "--report", arg(&picture)]].concat());
    refused(&picture, &[&run[..], &["-o", arg(&picture), "--init-image", arg(&picture)]].concat());
    let preview = at("h.preview.png");
    fs::copy(&picture, &preview).expect("a copy");
    let previews = ["--preview-every", "1", "--init-image", arg(&preview)];
    refused(&preview, &[&run[..], &["-o", arg(&picture)], &previews[..]].concat());
    let csv = at("a.csv");
    fs::write(&csv, "id,lower,upper,size\n0,0,1,8\n").expect("written");
    refused(&csv, &["arena", arg(&csv), "-o", arg(&csv)]);
}

/// The error names the output although the input is not there: nothing else was looked at.
#[test]
fn outputs_are_checked_before_the_work() {
    let folder = empty("outputs");
    let at = |name: &str| folder.join(name);
    fs::create_dir(at("sub.kiln")).expect("a folder");
    fs::create_dir(at("sub.png")).expect("a folder");
    let absent = at("no/such/x");
    let compile = ["compile", "--model", "emoji-256", "--weights", "no/such.safetensors", "-o"];
    let eval =
        ["eval", "no/such.kiln", "--network", "unet", "--input", "latent=no.npy", "--output"];
    let run = ["run", arg(bundle()), "-p", "a", "--device", "no such device", "-o"];
    for (command, extension, formats) in [
        (&compile[..], "kiln", "kiln"),
        (&eval[..], "npy", "npy"),
        (&run[..], "png", "png, .jpg or .webp"),
    ] {
        let refused = |output: &Path, expected: &str| {
            let line = kiln_err(&[command, &[arg(output)]].concat(), 2);
            assert!(line.contains(arg(output)) && line.contains(expected), "{line}");
            assert_eq!(line.matches(expected).count(), 1, "{line}");
        };
        refused(&absent.with_extension(extension), "is not there; create it");
        refused(&Path::new("/sys/x").with_extension(extension), "denied");
        refused(&at("x.gif"), &format!("would be a .{formats} file"));
    }
    for (command, name) in [(&compile[..], "sub.kiln"), (&run[..], "sub.png")] {
        let line = kiln_err(&[command, &[arg(&at(name))]].concat(), 2);
        assert!(line.contains("it is a folder"), "{line}");
    }
    // Neither is a cause told twice.
    let line = kiln_err(&[&compile[..], &[arg(&absent.with_extension("kiln"))]].concat(), 2);
    assert!(!line.contains("os error"), "{line}");
    let line = kiln_err(&[&run[..], &["x.png/"]].concat(), 2);
    assert!(line.contains("names no file"), "{line}");
    let report = ["/dev/null", "--report", arg(&absent)];
    let line = kiln_err(&[&run[..], &report[..]].concat(), 2);
    assert!(line.contains("is not there; create it"), "{line}");
    let tune =
        ["tune", "no/such.kiln", "-o", arg(&absent.with_extension("toml"))].map(String::from);
    let tune: Vec<&str> = tune.iter().map(String::as_str).collect();
    assert!(kiln_err(&tune, 2).contains("is not there; create it"));
    let page = ["inspect", "no/such.kiln", "--html", arg(&absent)];
    assert!(kiln_err(&page, 2).contains("is not there; create it"));
}

#[test]
fn a_batch_is_checked_whole_before_its_first_picture() {
    let folder = empty("batch");
    let prompts = folder.join("p.jsonl");
    let picture = folder.join("o.png");
    let run = ["run", arg(bundle()), "--prompts", arg(&prompts), "-o", arg(&picture)];
    for (lines, expected) in [
        (
            "{\"prompt\":\"a\"}\n{\"prompt\":\"b\",\"output\":\"/no/such/x.png\"}",
            "p.jsonl line 2: ",
        ),
        (
            "{\"prompt\":\"a\",\"output\":\"x.png\"}\n{\"prompt\":\"b\",\"output\":\"./x.png\"}",
            "line 2",
        ),
        ("{\"prompt\":\"a\"}\n\n{\"prompt\":\"b\",\"guidance\":1e39}", "p.jsonl line 3: guidance"),
        ("{\"prompt\":\"a\"}\nplain text", ".txt"),
    ] {
        fs::write(&prompts, lines).expect("the target folder can be written");
        let line = kiln_err(&run, 2);
        assert!(line.contains(expected), "{line}");
        assert_eq!(fs::read_dir(&folder).expect("it is there").count(), 1, "{line}");
    }
}

#[test]
fn an_input_given_twice_is_refused() {
    let eval = ["eval", arg(bundle()), "--network", "unet", "--output", "/dev/null"];
    let twice = ["--input", "latent=a.npy", "--input", "latent=b.npy"];
    let line = kiln_err(&[&eval[..], &twice[..]].concat(), 2);
    assert!(line.contains("latent is given twice"), "{line}");
}
