//! The files that a run writes, checked before its work.

use std::fs;
use std::path::Path;

use kiln_bundle::paths::{PathError, Paths, Purpose};

use super::formats::{self, PictureFormats};
use super::jobs::Job;
use super::{RunArgs, file_error, files};
use crate::error::RuntimeError;
use crate::session::latent_name;

/// Extension of a preview's file.
const PNG: &str = "png";

/// The files of a run.
pub(super) struct Outputs<'a> {
    args: &'a RunArgs,
    formats: &'a dyn PictureFormats,
    paths: Paths,
}

impl<'a> Outputs<'a> {
    /// No outputs yet, beside the files that the run reads.
    ///
    /// `room_bytes`: the folder of each output must have room for these bytes.
    pub fn new(args: &'a RunArgs, room_bytes: u64, formats: &'a dyn PictureFormats) -> Outputs<'a> {
        let inputs = [
            ("the bundle", Some(&args.bundle)),
            ("--prompts", args.prompts.as_ref()),
            ("--latent", args.latent.as_ref()),
            ("--opencl", args.opencl.as_ref()),
        ];
        let loras = args.lora.iter().map(|lora| ("--lora", Some(&lora.path)));
        let given = inputs.into_iter().chain(loras);
        let given = given.filter_map(|(name, path)| Some((name, path?.as_path())));
        Outputs { args, formats, paths: Paths::of_inputs(given, room_bytes) }
    }

    /// Adds the files that a picture is made from.
    pub fn inputs(&mut self, job: &Job) -> Result<(), PathError> {
        let inputs = [("--init-image", &job.init_image), ("--mask", &job.mask)];
        let mut given = inputs.into_iter().filter_map(|(name, path)| Some((name, path.as_ref()?)));
        given.try_for_each(|(name, path)| self.paths.reads(name, path))
    }

    /// Adds a picture and its preview. `line`: its line in a batch, or 0. `text_bytes`: of its
    /// prompts.
    pub fn picture(&mut self, path: &Path, line: usize, text_bytes: usize) -> Result<(), String> {
        if formats::is_stdout(path) {
            return Ok(());
        }
        let purpose = if line == 0 { Purpose::from("--output") } else { Purpose::line(line) };
        let told = |error: PathError| error.to_string();
        self.paths.writes(purpose, path, Some(self.formats.extension(path))).map_err(told)?;
        let most_bytes = self.formats.most_text_bytes(path);
        if text_bytes > most_bytes {
            let path = path.display();
            return Err(format!(
                "the prompts have {text_bytes} bytes, and {path} has room for {most_bytes} of \
                 them; write a .png file"
            ));
        }
        match self.args.preview_every {
            0 => Ok(()),
            _ => self.paths.writes("a preview", &files::preview_of(path), Some(PNG)).map_err(told),
        }
    }

    /// Adds the files beside `count` pictures, and makes the folder of dumped tensors.
    pub fn others(&mut self, steps: usize, count: usize) -> Result<(), RuntimeError> {
        let RunArgs { report, profile, dump, .. } = self.args;
        if count > 1 && (dump.is_some() || report.is_some()) {
            let message = "--dump and --report are for one picture, not for several";
            return Err(RuntimeError::Input(message.into()));
        }
        let mut writes = |name: &'static str, path: &Path| {
            let written = self.paths.writes(name, path, None);
            written.map_err(|error| RuntimeError::Input(error.to_string()))
        };
        for (name, path) in [("--report", report), ("--profile", profile)] {
            path.iter().try_for_each(|path| writes(name, path))?;
        }
        let Some(folder) = dump else { return Ok(()) };
        fs::create_dir_all(folder).map_err(file_error("create", folder))?;
        let tensors = ["tokens", "embedding", "decoded"].map(String::from).into_iter();
        let mut names = tensors.chain((0..=steps).map(latent_name));
        names.try_for_each(|name| writes("--dump", &files::tensor_path(folder, &name)))
    }
}
