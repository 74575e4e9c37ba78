//! The arguments of `kiln-run`, read by lexopt.
//!
//! `kiln run` reads the same arguments by clap, which is too large for a device. A test of the
//! `kiln` command compares the two.

use std::ffi::OsString;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;
use std::str::FromStr;

use kiln_bundle::plan::{Plan, Size};
use lexopt::Arg::{Long, Short, Value};
use lexopt::Parser;

use super::{CacheArgs, PrepareArgs, RunArgs};

/// Output of `kiln-run --help`.
pub const HELP: &str = "\
Makes pictures from prompts with a compiled model

Usage: kiln-run FILE.kiln --prompt TEXT -o FILE.png [OPTIONS]
       kiln-run FILE.kiln --prompts FILE.jsonl [OPTIONS]
       kiln-run --prepare FILE.kiln      compiles the kernels ahead, as the first run does

      --size WIDTHxHEIGHT       size of the picture, if the bundle has several [the first]
  -W, --width PIXELS            width of the picture, in place of --size
  -H, --height PIXELS           height of the picture, in place of --size
  -p, --prompt TEXT             what the picture shows
  -n, --negative-prompt TEXT    what the picture does not show
      --plain-prompt            takes brackets in prompts as text; otherwise they weigh words:
                                (word:1.3), (word), [word]
      --prompts FILE.jsonl      a batch: one JSON object a line with \"prompt\" and optionally
                                \"negative_prompt\", \"seed\", \"steps\", \"guidance\",
                                \"guidance_rescale\", \"sampler\", \"spacing\", \"eta\",
                                \"fast\", \"guidance_interval\", \"cache_interval\",
                                \"init_image\", \"mask\", \"strength\", \"output\"; in a .txt
                                file a prompt a line; existing pictures are skipped
      --count N                 number of pictures; seeds count up from --seed [1]
      --seed N                  seed of the noise; the same seed gives the same picture; -1 draws
                                one, which the picture records [0]
      --steps N                 steps of the sampler [the model's]
      --guidance SCALE          scale of classifier-free guidance; 1 turns it off [the model's]
      --guidance-rescale SHARE  share of the guided output's deviation to bring back, 0 to 1 [0]
      --sampler NAME            ddim, euler, euler-a, heun, dpm++2m, dpm++2m-sde, unipc, lcm or tcd
                                [the model's]
      --spacing NAME            leading, trailing, linspace or karras [the model's]
      --eta SHARE               noise that each step of ddim or tcd adds, 0 to 1 [0, tcd 0.3]
      --fast 0|1|2|3            steps that cost less and change the picture, more from 1 to 3; the
                                bundle must be compiled with --fast [0]
      --guidance-interval START:STOP
                                steps that have guidance, shares from 0 to 1 [0:1, or the preset's]
      --cache-interval N        one step in N computes the inner levels [1, or the preset's]
      --latent FILE.npy         initial latent in place of the seed's noise
      --init-image FILE.png     initial picture; the bundle must have an image encoder
      --mask FILE.png           part of --init-image to repaint, in white; black is kept
      --strength SHARE          share of the steps that change --init-image, over 0 to 1 [0.75,
                                with --mask 1]
      --lora FILE[:STRENGTH]    LoRA to switch on, made by kiln lora for this bundle; repeatable
      --decoder full|tiny       decoder of the bundle; by default full if it is there
      --preview-every N         writes a preview beside the picture every N steps
      --dump DIR                writes tokens, embeddings, latents and the decoded tensor as .npy
      --report FILE.json        writes memory and times, planned and measured
      --profile FILE.json       times every launch
      --page-cache              lets the page cache keep weights, in memory outside the budget
      --device WHICH            OpenCL device: auto, an index, or part of a name [auto]
      --opencl LIBRARY          OpenCL library; without it, one is searched for
      --cache DIR               folder of compiled kernels [$KILN_CACHE, else the user's]
      --trust KEY               refuses a bundle that this key has not signed, before its kernels
                                are compiled: 64 hexadecimal digits
  -o, --output FILE.png         picture to write, or -; with several, {seed} becomes the seed
  -h, --help
  -V, --version
";

/// The command that the arguments ask for.
#[derive(Clone, Debug)]
pub enum Command {
    /// Make images.
    Run(Box<RunArgs>),
    /// Compile kernels ahead.
    Prepare(PrepareArgs),
    /// Print [`HELP`].
    Help,
    /// Print the version.
    Version,
}

impl Command {
    /// Reads the arguments after the program's name.
    ///
    /// Errors: one line that names the argument.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
        let mut parser = Parser::from_args(arguments);
        let mut run = RunArgs::of(PathBuf::new());
        let (mut bundle, mut prepare, mut worker, mut unfit) = (None, false, false, None);
        while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
            let name = match argument {
                Short(letter) => format!("-{letter}"),
                Long(word) => format!("--{word}"),
                Value(file) if bundle.is_none() => {
                    bundle = Some(PathBuf::from(file));
                    continue;
                }
                Value(other) => return Err(format!("unexpected argument {other:?}")),
            };
            let mut value = Given { name: &name, parser: &mut parser };
            match &*name {
                "-h" | "--help" => return Ok(Command::Help),
                "-V" | "--version" => return Ok(Command::Version),
                "--prepare" => prepare = true,
                "--worker" => worker = true,
                "--size" => run.size = Some(value.parsed()?),
                "-p" | "--prompt" => run.prompt = Some(value.raw()?),
                "-n" | "--negative-prompt" => run.negative_prompt = value.raw()?,
                "--plain-prompt" => run.plain_prompt = true,
                "--prompts" => run.prompts = Some(value.path()?),
                "-W" | "--width" => run.width = Some(value.parsed()?),
                "-H" | "--height" => run.height = Some(value.parsed()?),
                "--count" | "--batch-count" => run.count = value.parsed()?,
                "--seed" => run.seed = value.seed()?,
                "--steps" | "--num-inference-steps" => run.steps = Some(value.parsed()?),
                "--guidance" | "--cfg-scale" | "--guidance-scale" => {
                    run.guidance = Some(value.parsed()?)
                }
                "--sampler" | "--sampling-method" => run.sampler = Some(value.parsed()?),
                "--guidance-rescale" => run.guidance_rescale = value.parsed()?,
                "--spacing" => run.spacing = Some(value.parsed()?),
                "--eta" => run.eta = Some(value.parsed()?),
                "--fast" => run.fast = value.parsed()?,
                "--guidance-interval" => run.guidance_interval = Some(value.parsed()?),
                "--cache-interval" => run.cache_interval = Some(value.parsed()?),
                "--latent" => run.latent = Some(value.path()?),
                "--init-image" => run.init_image = Some(value.path()?),
                "--mask" => run.mask = Some(value.path()?),
                "--strength" => run.strength = Some(value.parsed()?),
                "--lora" => run.lora.push(value.parsed()?),
                "--decoder" => run.decoder = Some(value.parsed()?),
                "--preview-every" => run.preview_every = value.parsed()?,
                "--dump" => run.dump = Some(value.path()?),
                "--report" => run.report = Some(value.path()?),
                "--profile" => run.profile = Some(value.path()?),
                "--page-cache" => run.page_cache = true,
                "--device" => run.device = value.parsed()?,
                "--opencl" => run.opencl = Some(value.path()?),
                "--cache" => run.cache.cache = Some(value.path()?),
                "--trust" => run.trust = Some(value.parsed()?),
                "-o" | "--output" => run.output = Some(value.path()?),
                _ => return Err(format!("unexpected argument {name:?}; see --help")),
            }
            if !matches!(&*name, "--prepare" | "--worker" | "--device" | "--cache" | "--trust") {
                unfit = Some(name);
            }
        }
        let bundle = bundle.ok_or("no FILE.kiln is given; see --help")?;
        if prepare {
            if let Some(name) = unfit {
                return Err(format!("{name} is not for --prepare"));
            }
            return Ok(Command::Prepare(PrepareArgs {
                bundle,
                device: run.device,
                cache: run.cache,
                trust: run.trust,
                worker,
            }));
        }
        if worker {
            return Err("--worker is for --prepare".into());
        }
        run.bundle = bundle;
        check(&run)?;
        Ok(Command::Run(Box::new(run)))
    }
}

/// Parses a seed. -1 draws one of 32 bits, which every other program takes as well.
pub(super) fn seed(text: &str) -> Result<u64, String> {
    if text == "-1" {
        return Ok(RandomState::new().build_hasher().finish() >> 32);
    }
    let what = || format!("a seed is a whole number from 0 to {}, or -1 for any", u64::MAX);
    text.parse().map_err(|_| what())
}

impl RunArgs {
    /// The size that is asked for. A side that is not given is that of the plan.
    pub(super) fn size_of(&self, plan: &Plan) -> Option<Size> {
        let own = plan.manifest.image;
        match (self.width, self.height) {
            (None, None) => self.size,
            (width, height) => Some(Size {
                width_px: width.unwrap_or(own.width_px),
                height_px: height.unwrap_or(own.height_px),
            }),
        }
    }

    /// The defaults.
    fn of(bundle: PathBuf) -> RunArgs {
        RunArgs {
            bundle,
            size: None,
            width: None,
            height: None,
            prompt: None,
            negative_prompt: OsString::new(),
            plain_prompt: false,
            prompts: None,
            count: 1,
            seed: 0,
            steps: None,
            guidance: None,
            sampler: None,
            guidance_rescale: 0.0,
            spacing: None,
            eta: None,
            fast: 0,
            guidance_interval: None,
            cache_interval: None,
            latent: None,
            init_image: None,
            mask: None,
            strength: None,
            lora: Vec::new(),
            decoder: None,
            preview_every: 0,
            dump: None,
            report: None,
            profile: None,
            page_cache: false,
            device: "auto".into(),
            opencl: None,
            cache: CacheArgs::default(),
            trust: None,
            output: None,
        }
    }
}

/// Checks which arguments require or exclude each other.
fn check(run: &RunArgs) -> Result<(), String> {
    let batch = run.prompts.is_some();
    let sides = run.width.is_some() || run.height.is_some();
    for (wrong, message) in [
        (!batch && run.prompt.is_none(), "no --prompt is given; see --help"),
        (!batch && run.output.is_none(), "no --output is given; see --help"),
        (batch && run.prompt.is_some(), "--prompts and --prompt cannot be used together"),
        (batch && run.count != 1, "--prompts and --count cannot be used together"),
        (batch && run.latent.is_some(), "--prompts and --latent cannot be used together"),
        (sides && run.size.is_some(), "--size and --width or --height cannot be used together"),
        (run.count == 0, "--count is at least 1"),
        (run.mask.is_some() && run.init_image.is_none(), "--mask needs --init-image"),
        (run.strength.is_some() && run.init_image.is_none(), "--strength needs --init-image"),
    ] {
        if wrong {
            return Err(message.into());
        }
    }
    Ok(())
}

/// The value of an option: after its `=`, or the next argument.
struct Given<'a> {
    name: &'a str,
    parser: &'a mut Parser,
}

impl Given<'_> {
    fn raw(&mut self) -> Result<OsString, String> {
        self.parser.value().map_err(|_| format!("{} needs a value", self.name))
    }

    fn seed(&mut self) -> Result<u64, String> {
        let raw = self.raw()?;
        seed(&raw.to_string_lossy())
            .map_err(|what| format!("{} cannot be {raw:?}: {what}", self.name))
    }

    fn path(&mut self) -> Result<PathBuf, String> {
        self.raw().map(PathBuf::from)
    }

    fn parsed<T: FromStr>(&mut self) -> Result<T, String> {
        let raw = self.raw()?;
        let parsed = raw.to_str().and_then(|text| text.parse().ok());
        parsed.ok_or_else(|| format!("{} cannot be {raw:?}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &[&str]) -> Result<Command, String> {
        Command::parse(line.iter().map(OsString::from))
    }

    fn run(line: &[&str]) -> RunArgs {
        match parse(line) {
            Ok(Command::Run(run)) => *run,
            other => panic!("{line:?}: {other:?}"),
        }
    }

    #[test]
    fn values_stand_behind_their_names() {
        let found = run(&["-o", "a b.png", "m.kiln", "-p", "-x", "--seed=7", "--guidance", "-1.5"]);
        assert_eq!((found.seed, found.guidance, found.steps), (7, Some(-1.5), None));
        assert_eq!(found.prompt.unwrap(), "-x");
        assert_eq!((found.bundle, found.output), ("m.kiln".into(), Some("a b.png".into())));
        let found = run(&["--prompts=p=q.jsonl", "--", "--odd.kiln"]);
        assert_eq!((found.bundle, found.prompts), ("--odd.kiln".into(), Some("p=q.jsonl".into())));
        let prepare = parse(&["m.kiln", "--device", "1", "--prepare"]);
        assert!(matches!(prepare, Ok(Command::Prepare(args)) if args.device == "1"));
        assert!(matches!(parse(&["-V", "--no-such"]), Ok(Command::Version)));
    }

    #[test]
    fn options_of_other_programs_are_understood() {
        let base = ["m.kiln", "-p", "x", "-o", "o.png"];
        let run = |more: &[&'static str]| run(&[&base[..], more].concat());
        let found = run(&["-W", "512", "-H", "768", "--cfg-scale", "3", "--batch-count", "2"]);
        assert_eq!((found.width, found.height), (Some(512), Some(768)));
        assert_eq!((found.guidance, found.count), (Some(3.0), 2));
        let found = run(&["--sampling-method", "euler_a", "--num-inference-steps", "9"]);
        assert_eq!((found.sampler.as_deref(), found.steps), (Some("euler_a"), Some(9)));
        let [one, two] = [0, 1].map(|_| run(&["--seed", "-1"]).seed);
        assert!(one != two && one >> 32 == 0, "{one} {two}");
    }

    #[test]
    fn wrong_lines_are_told_in_words() {
        let right = ["m.kiln", "-p", "x", "-o", "o.png"];
        let with = |more: &[&'static str]| [&right[..], more].concat();
        for (line, expected) in [
            (vec![], "FILE.kiln"),
            (vec!["m.kiln", "-o", "o.png"], "--prompt"),
            (vec!["m.kiln", "-p", "x"], "--output"),
            (with(&["--steps"]), "--steps needs a value"),
            (with(&["--steps", "many"]), "--steps cannot be \"many\""),
            (with(&["--sed", "1"]), "\"--sed\""),
            (with(&["other.kiln"]), "\"other.kiln\""),
            (with(&["--count", "0"]), "--count"),
            (with(&["--strength", "0.5"]), "--init-image"),
            (with(&["--mask", "m.png"]), "--mask needs --init-image"),
            (with(&["--prompts", "p.jsonl"]), "--prompts and --prompt"),
            (vec!["--prepare", "m.kiln", "-p", "x"], "-p is not for --prepare"),
        ] {
            let error = parse(&line).unwrap_err();
            assert!(error.contains(expected) && !error.contains('\n'), "{line:?}: {error}");
        }
        assert!(parse(&right).is_ok());
    }

    #[test]
    fn help_names_every_option_and_no_other() {
        let is_option = |word: &&str| word.starts_with("--") && word.len() > 2;
        for option in HELP.split([' ', '\n', ',']).filter(is_option) {
            let answer = parse(&[option]);
            let known = !matches!(&answer, Err(error) if error.contains("unexpected"));
            assert!(known, "{option}: {answer:?}");
        }
    }
}
