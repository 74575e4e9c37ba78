//! The images that a command asks for: one, a sequence of seeds, or the lines of a file.
//!
//! Owns the names of their files. Knows no device. All images are checked before the first one is
//! made, and read again one at a time, so that memory does not grow with their number.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use kiln_bundle::plan::Plan;

use super::RunArgs;
use super::formats::{self, PictureFormats};
use super::outputs::Outputs;
use super::pictures::Pictures;
use super::prompts::Prompts;
use crate::error::RuntimeError;
use crate::pipeline::fast::GuidanceInterval;
use crate::session::Request;

/// The text that the seed replaces in an output's name.
const SEED: &str = "{seed}";
/// Most images of a command. The names of their files are compared in memory.
const MAX_PICTURES: usize = 100_000;

/// One image to make.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Job {
    pub prompt: String,
    pub negative_prompt: String,
    pub seed: u64,
    pub steps: Option<usize>,
    pub guidance: Option<f32>,
    pub guidance_rescale: f32,
    pub sampler: Option<String>,
    pub spacing: Option<String>,
    pub eta: Option<f32>,
    pub init_image: Option<PathBuf>,
    pub mask: Option<PathBuf>,
    pub strength: Option<f64>,
    pub fast: usize,
    pub guidance_interval: Option<GuidanceInterval>,
    pub cache_interval: Option<usize>,
    pub output: PathBuf,
    /// Number of the line in a batch; 0 outside of one.
    pub line: usize,
}

impl Job {
    /// The request, without the inputs that all images share.
    pub fn request(&self, args: &RunArgs) -> Request<'static> {
        Request {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            seed: self.seed,
            steps: self.steps,
            guidance: self.guidance,
            guidance_rescale: self.guidance_rescale,
            sampler: self.sampler.clone(),
            spacing: self.spacing.clone(),
            eta: self.eta,
            fast: self.fast,
            guidance_interval: self.guidance_interval,
            cache_interval: self.cache_interval,
            decoder: args.decoder,
            plain_prompt: args.plain_prompt,
            preview_every: args.preview_every,
            ..Request::default()
        }
    }
}

/// The images of a command.
pub(super) struct Jobs<'a> {
    args: &'a RunArgs,
    base: Job,
    prompts: Option<Prompts>,
    /// Number of images, with those of a batch that are there already.
    pub count: usize,
    /// Number of images of a batch that are there already.
    pub done: usize,
    /// The pictures that were read last, before the plan's memory is allocated.
    pub pictures: Pictures,
}

impl<'a> Jobs<'a> {
    /// Reads and checks all images and the names of all files that the command writes.
    ///
    /// `plan`: the bundle's. `room_bytes`: the folder of each picture must have room for these
    /// bytes.
    /// Errors: `Input`, with the number of the line in a batch.
    pub fn of(
        args: &'a RunArgs,
        plan: &Plan,
        room_bytes: u64,
        formats: &dyn PictureFormats,
    ) -> Result<Jobs<'a>, RuntimeError> {
        let prompts = args.prompts.as_deref().map(Prompts::read).transpose()?;
        let base = base(args)?;
        let pictures = Pictures::default();
        let mut jobs = Jobs { args, base, prompts, count: 0, done: 0, pictures };
        let mut outputs = Outputs::new(args, room_bytes, formats);
        let (mut first, mut steps, mut pictures) = (None, 0, Pictures::default());
        if jobs.prompts.is_none() && args.count > MAX_PICTURES {
            return Err(RuntimeError::Input(format!("--count is at most {MAX_PICTURES}")));
        }
        if args.output.as_deref().is_some_and(formats::is_stdout) {
            if args.prompts.is_some() || args.count > 1 || args.preview_every > 0 {
                let message =
                    "-o - is for one picture: not for --prompts, --count, --preview-every";
                return Err(RuntimeError::Input(message.into()));
            }
            formats::check_stdout().map_err(RuntimeError::Input)?;
        }
        let (mut count, mut done) = (0, 0);
        for (number, job) in jobs.all() {
            count += 1;
            if count > MAX_PICTURES {
                let message = format!("--prompts has over {MAX_PICTURES} prompts; split it");
                return Err(RuntimeError::Input(message));
            }
            let job = job.map_err(|message| jobs.at(number, RuntimeError::Input(message)))?;
            if number > 0 || first.is_none() {
                let settings = job.request(args).settings(&plan.manifest);
                steps = settings.map_err(|error| jobs.at(number, error))?.steps;
                pictures.read(&job, plan, formats).map_err(|error| jobs.at(number, error))?;
                let checked = outputs.inputs(&job);
                checked.map_err(|error| jobs.at(number, RuntimeError::Input(error.to_string())))?;
            }
            let text_bytes = job.prompt.len() + job.negative_prompt.len();
            let checked = outputs.picture(&job.output, number, text_bytes);
            checked.map_err(|message| jobs.at(number, RuntimeError::Input(message)))?;
            done += usize::from(number > 0 && job.output.exists());
            first = Some(());
        }
        (jobs.count, jobs.done, jobs.pictures) = (count, done, pictures);
        match first {
            None => return Err(RuntimeError::Input("--prompts has no prompts".into())),
            Some(()) => outputs.others(steps, count)?,
        }
        Ok(jobs)
    }

    /// The images to make, in order, with their places among all images.
    pub fn iter(&self) -> impl Iterator<Item = Result<(usize, Job), RuntimeError>> {
        let is_new = |number: usize, job: &Job| number == 0 || !job.output.exists();
        self.all().enumerate().filter_map(move |(place, (number, job))| match job {
            Ok(job) => is_new(number, &job).then_some(Ok((place + 1, job))),
            Err(message) => Some(Err(self.at(number, RuntimeError::Input(message)))),
        })
    }

    /// All images, with the numbers of their lines, or 0.
    fn all(&self) -> Box<dyn Iterator<Item = (usize, Result<Job, String>)> + '_> {
        let (args, base) = (self.args, &self.base);
        if let Some(prompts) = &self.prompts {
            let job = |(number, line)| (number, prompts.job(line, number, args, base));
            return Box::new(prompts.lines().map(job));
        }
        let pattern = args.output.as_deref().unwrap_or(Path::new(""));
        Box::new((0..args.count).map(move |index| {
            let seed = args.seed.wrapping_add(index as u64);
            let number = (args.count > 1).then_some(index + 1);
            (0, Ok(Job { seed, output: output_name(pattern, seed, number), ..base.clone() }))
        }))
    }

    /// An error, with its line in a batch.
    pub fn at(&self, line: usize, error: RuntimeError) -> RuntimeError {
        match (&self.prompts, error) {
            (None, error) | (_, error @ RuntimeError::Cancelled) => error,
            (Some(prompts), error) => {
                let place = format!("{} line {line}", prompts.path.display());
                RuntimeError::Line { place, error: Box::new(error) }
            }
        }
    }
}

/// The values of the arguments for an image.
fn base(args: &RunArgs) -> Result<Job, RuntimeError> {
    Ok(Job {
        prompt: text(args.prompt.as_deref().unwrap_or_default(), "prompt")?,
        negative_prompt: text(&args.negative_prompt, "negative prompt")?,
        seed: args.seed,
        steps: args.steps,
        guidance: args.guidance,
        guidance_rescale: args.guidance_rescale,
        sampler: args.sampler.clone(),
        spacing: args.spacing.clone(),
        eta: args.eta,
        init_image: args.init_image.clone(),
        mask: args.mask.clone(),
        strength: args.strength,
        fast: args.fast,
        guidance_interval: args.guidance_interval,
        cache_interval: args.cache_interval,
        output: PathBuf::new(),
        line: 0,
    })
}

/// Text of an argument.
fn text(argument: &OsStr, name: &str) -> Result<String, RuntimeError> {
    match argument.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(RuntimeError::Input(format!("the {name} is not UTF-8 text"))),
    }
}

/// `out.png` becomes `out-0001.png`, unless it contains `{seed}` or there is no number.
pub(super) fn output_name(pattern: &Path, seed: u64, number: Option<usize>) -> PathBuf {
    if let Some(text) = pattern.to_str()
        && text.contains(SEED)
    {
        return PathBuf::from(text.replace(SEED, &seed.to_string()));
    }
    match number {
        Some(number) => super::files::with_suffix(pattern, &format!("-{number:04}")),
        None => pattern.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Command, Png};

    fn parse(args: &[&str]) -> Result<(Vec<Job>, usize), RuntimeError> {
        let args = [&["m.kiln"], args].concat();
        match Command::parse(args.into_iter().map(Into::into)) {
            Ok(Command::Run(run)) => {
                let jobs = Jobs::of(&run, &kiln_bundle::testing::plan(), 0, &Png)?;
                let list = jobs.iter().map(|job| job.map(|(_, job)| job)).collect::<Result<_, _>>();
                Ok((list?, jobs.done))
            }
            other => panic!("{other:?}"),
        }
    }

    fn names(args: &[&str]) -> Vec<String> {
        let jobs = parse(args).unwrap().0;
        jobs.iter().map(|job| job.output.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn seeds_and_names_follow_each_other() {
        let one = ["-p", "x", "-o", "src/out.png"];
        assert_eq!(names(&one), ["src/out.png"]);
        let two = [&one[..], &["--count", "2", "--seed", "41"]].concat();
        assert_eq!(names(&two), ["src/out-0001.png", "src/out-0002.png"]);
        let seeds: Vec<u64> = parse(&two).unwrap().0.iter().map(|job| job.seed).collect();
        assert_eq!(seeds, [41, 42]);
        assert_eq!(names(&["-p", "x", "-o", "{seed}.png", "--count", "2"]), ["0.png", "1.png"]);
        assert_eq!(names(&["-p", "x", "-o", "s{seed}.png", "--seed", "7"]), ["s7.png"]);
        assert!(parse(&[&two[..], &["--report", "r.json"]].concat()).is_err());
        assert!(parse(&[&one[..], &["--report", "r.json"]].concat()).is_ok());
        let many = parse(&[&one[..], &["--count", "1000000000"]].concat()).unwrap_err();
        assert_eq!(many.to_string(), "--count is at most 100000");
    }

    #[test]
    fn lines_say_what_differs_and_done_ones_are_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let file = path("p.jsonl");
        let done = path("done.png");
        std::fs::write(&done, "").unwrap();
        let lines = format!(
            "{{\"prompt\": \"a\", \"seed\": 5, \"sampler\": \"euler\"}}\n\n\
             {{\"prompt\": \"b\", \"steps\": 3, \"guidance\": 2.5, \"negative_prompt\": \"n\"}}\n\
             {{\"prompt\": \"c\", \"output\": {done:?}}}\n"
        );
        std::fs::write(&file, lines).unwrap();
        let (found, skipped) = parse(&["--prompts", &file, "-o", "o.png", "--steps", "9"]).unwrap();
        assert_eq!((found.len(), skipped), (2, 1));
        let first = (found[0].steps, found[0].seed, found[0].sampler.as_deref());
        assert_eq!(first, (Some(9), 5, Some("euler")));
        assert_eq!(found[0].output, Path::new("o-0001.png"));
        let second = (found[1].steps, found[1].guidance, &*found[1].negative_prompt);
        assert_eq!(second, (Some(3), Some(2.5), "n"));
        assert_eq!(found[1].output, Path::new("o-0003.png"));
    }

    #[test]
    fn faults_are_told_with_their_lines() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.jsonl").to_str().unwrap().to_owned();
        let long = "x".repeat(70_000);
        let cases: [(&[u8], &str); 17] = [
            (br#"{"prompt": "a"}"#, "line 1: it has no \"output\""),
            (b"{\"prompt\": \"a\", \"output\": \"x\"}\n{\"promt\": 1}", "line 2: unknown field"),
            (br#"{"prompt": "a", "output": "x", "steps": 0}"#, "line 1: 0 sampling steps"),
            (br#"{"prompt": "a", "output": "x", "steps": 2000}"#, "line 1: 2000 sampling steps"),
            (br#"{"prompt": "a", "output": "x", "sampler": "none"}"#, "euler"),
            (br#"{"prompt": "a", "output": "x", "spacing": "even"}"#, "trailing"),
            (br#"{"prompt": "a", "output": "x", "eta": 2}"#, "line 1: eta is 2, it must be"),
            (br#"{"prompt": "a", "output": "x", "guidance_rescale": -1}"#, "rescale is -1"),
            (br#"{"prompt": "a", "output": "x", "guidance": 1e30}"#, "line 1: guidance is 1e30"),
            (br#"{"prompt": "a", "output": "x", "guidance": 1e39}"#, "line 1: "),
            (br#"{"prompt": "a", "output": ""}"#, "line 1: cannot write : the path names no file"),
            (
                b"\n\n{\"prompt\": \"a\", \"output\": \"/no/such/x.png\"}",
                "line 3: cannot write /no",
            ),
            (br#"{"prompt": "a", "output": "x.jpg"}"#, "line 1: x.jpg would be a .png file"),
            (b"a red heart", "line 1: it is no {\"prompt\""),
            (b"\n", "no prompts"),
            (b"{}\n\xff\xfe{\0", "line 2: not UTF-8 text"),
            (&[b' '; 5 << 20], "has over 4194304 bytes"),
        ];
        for (text, expected) in cases {
            std::fs::write(&file, text).unwrap();
            let error = parse(&["--prompts", &file]).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains('\n'), "{error}");
        }
        std::fs::write(&file, format!("{{\"prompt\": \"{long}\", \"output\": \"x\"}}")).unwrap();
        let error = parse(&["--prompts", &file]).unwrap_err().to_string();
        assert!(error.contains("line 1: the prompt has 70000 bytes"), "{error}");
        let line = |name: &str| format!("{{\"prompt\": \"a\", \"output\": \"{name}\"}}\n");
        std::fs::write(&file, line("x.png") + &line("y.png") + &line("./x.png")).unwrap();
        let error = parse(&["--prompts", &file]).unwrap_err().to_string();
        assert!(error.contains("line 3: ./x.png is the same file as line 1"), "{error}");
    }

    #[test]
    fn byte_order_marks_line_ends_and_plain_prompts_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let read = |name: &str, text: &str| {
            let file = folder.path().join(name);
            std::fs::write(&file, text).unwrap();
            let found = parse(&["--prompts", file.to_str().unwrap(), "-o", "o.png"]).unwrap().0;
            let name = |job: Job| (job.prompt, job.output.to_str().unwrap().to_owned());
            found.into_iter().map(name).collect::<Vec<_>>()
        };
        let expected = [("a", "o-0001.png"), ("b", "o-0003.png")]
            .map(|(prompt, name)| (prompt.to_owned(), name.to_owned()));
        let json = "\u{feff}{\"prompt\":\"a\"}\r\n\r\n{\"prompt\":\"b\"}\r\n";
        assert_eq!(read("p.jsonl", json), expected);
        assert_eq!(read("p.txt", "\u{feff}a\r\n \n b \n"), expected);
    }
}
