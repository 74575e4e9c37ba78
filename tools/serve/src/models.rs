//! The bundles that a server offers: what is known of each without loading it.

use std::path::{Path, PathBuf};

use kiln_bundle::plan::{Manifest, Plan, Role, Size};
use kiln_bundle::sign::PublicKey;
use kiln_bundle::{BundleError, BundleFile};
use kiln_runtime::report::PlannedMemory;
use serde::Serialize;

use crate::error::{Refusal, ServeError};

/// A bundle.
pub struct Model {
    /// Name by which clients choose it: the file's name without its end.
    pub name: String,
    path: PathBuf,
    trust: Option<PublicKey>,
    /// What it makes, the default size first.
    pub sizes: Vec<ModelSize>,
    /// Whether a picture can begin with another one.
    pub has_encoder: bool,
    /// The decoders: full, tiny.
    pub decoders: Vec<&'static str>,
}

/// A bundle's plan for one size of pictures.
pub struct ModelSize {
    /// Size of pictures.
    pub size: Size,
    /// Head of the plan.
    pub manifest: Manifest,
    /// Planned memory.
    pub planned: PlannedMemory,
}

/// A bundle as clients see it.
#[derive(Serialize)]
pub struct Card<'a> {
    name: &'a str,
    model: &'a str,
    precision: &'a str,
    profile: &'a str,
    sizes: Vec<String>,
    sampler: &'a str,
    steps: u32,
    guidance: f32,
    has_guidance: bool,
    init_image: bool,
    mask: bool,
    needs_mask: bool,
    decoders: &'a [&'static str],
    planned: Vec<&'a PlannedMemory>,
}

impl Model {
    fn open(path: &Path, trust: Option<PublicKey>) -> Result<Model, ServeError> {
        let bundle = open(path, trust)?;
        let has = |role| bundle.plan().with_role(role).is_some();
        let has_encoder = has(Role::ImageEncoder);
        let decoders = [(Role::Decoder, "full"), (Role::TinyDecoder, "tiny")];
        let decoders = decoders.into_iter().filter(|&(role, _)| has(role)).map(|(_, name)| name);
        let decoders = decoders.collect();
        let (rest, mut sizes) = (bundle.sizes()[1..].to_vec(), vec![ModelSize::of(bundle.plan())]);
        for size in rest {
            sizes.push(ModelSize::of(open(path, trust)?.at_size(size)?.plan()));
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Model { name, path: path.to_owned(), trust, sizes, has_encoder, decoders })
    }

    /// Opens the bundle for a size.
    pub fn bundle(&self, size: Size) -> Result<BundleFile, BundleError> {
        let bundle = open(&self.path, self.trust)?;
        if bundle.plan().manifest.image == size { Ok(bundle) } else { bundle.at_size(size) }
    }

    /// The plan for a size, or for the default size.
    ///
    /// Errors: 400 with the sizes that there are.
    pub fn size(&self, size: Option<Size>) -> Result<&ModelSize, Refusal> {
        let found = match size {
            None => self.sizes.first(),
            Some(size) => self.sizes.iter().find(|known| known.size == size),
        };
        found.ok_or_else(|| {
            let known: Vec<_> = self.sizes.iter().map(|known| known.size.to_string()).collect();
            let asked = size.map(|size| size.to_string()).unwrap_or_default();
            let (name, known) = (&self.name, known.join(", "));
            Refusal::bad(format!("{name} makes no pictures of {asked}; it makes {known}"))
        })
    }

    /// Whether the model reads a mask, and makes no pictures without one.
    pub fn needs_mask(&self) -> bool {
        self.sizes[0].manifest.condition_channels > 0
    }

    /// The bundle as clients see it.
    pub fn card(&self) -> Card<'_> {
        let manifest = &self.sizes[0].manifest;
        Card {
            name: &self.name,
            model: &manifest.model,
            precision: &manifest.precision,
            profile: &manifest.profile,
            sizes: self.sizes.iter().map(|size| size.size.to_string()).collect(),
            sampler: &manifest.schedule.sampler,
            steps: manifest.schedule.steps,
            guidance: manifest.schedule.guidance,
            has_guidance: manifest.guidance_branches > 1 || manifest.guidance_channels > 0,
            init_image: self.has_encoder,
            mask: self.has_encoder,
            needs_mask: self.needs_mask(),
            decoders: &self.decoders,
            planned: self.sizes.iter().map(|size| &size.planned).collect(),
        }
    }
}

impl ModelSize {
    fn of(plan: &Plan) -> ModelSize {
        let manifest = plan.manifest.clone();
        ModelSize { size: manifest.image, manifest, planned: PlannedMemory::of(plan) }
    }
}

fn open(path: &Path, trust: Option<PublicKey>) -> Result<BundleFile, BundleError> {
    match trust {
        Some(key) => BundleFile::open_signed(path, key),
        None => BundleFile::open(path),
    }
}

/// All bundles.
pub struct Models(Vec<Model>);

impl Models {
    /// Errors: those of opening a bundle; `SameName`.
    pub fn open(paths: &[PathBuf], trust: Option<PublicKey>) -> Result<Models, ServeError> {
        let mut models: Vec<Model> = Vec::new();
        for path in paths {
            let model = Model::open(path, trust)?;
            if models.iter().any(|known| known.name == model.name) {
                return Err(ServeError::SameName(model.name));
            }
            models.push(model);
        }
        Ok(Models(models))
    }

    pub fn all(&self) -> &[Model] {
        &self.0
    }

    /// Index of the bundle with a name.
    ///
    /// Errors: 404 with the names that there are.
    pub fn find(&self, name: &str) -> Result<usize, Refusal> {
        let name = name.strip_suffix(".kiln").unwrap_or(name);
        self.0.iter().position(|model| model.name == name).ok_or_else(|| {
            let known: Vec<_> = self.0.iter().map(|model| &*model.name).collect();
            Refusal::not_found(format!("no model {name:?}; there are: {}", known.join(", ")))
        })
    }
}
