//! The interface of a model: one graph for each part, and the manifest.

use anyhow::Result;
use kiln_bundle::plan::{Manifest, Role};
use kiln_ir::Graph;

/// Branches of classifier-free guidance at most: the negative and the positive prompt.
pub const GUIDANCE_BRANCHES: usize = 2;

/// Timesteps in one pass of the timestep projection. Images of up to 64 steps need one pass, so its
/// weights are read once an image. A row of sd21-base takes 79 KiB.
pub const TIMESTEP_ROWS: usize = 64;

/// Name of the U-Net's value that its shallow variant takes from an earlier pass.
pub const DEEP: &str = "deep";

/// A diffusion model as graphs.
pub trait Model {
    /// The text encoder for `batch` prompts: `tokens` -> `embedding`.
    fn text_encoder(&self, batch: usize) -> Result<Graph>;
    /// The U-Net for `batch` latents: `latent`, `timestep`, `context` -> `eps`.
    fn unet(&self, batch: usize) -> Result<Graph>;
    /// [`unet`](Self::unet) with a second output, [`DEEP`]: the value with which the inner levels
    /// enter the last outer block. Without it there is no shallow variant.
    fn unet_with_deep(&self, batch: usize) -> Result<Graph> {
        self.unet(batch)
    }
    /// The decoder for one latent: `latent` -> `image`.
    fn decoder(&self) -> Result<Graph>;
    /// The decoders of the bundle, one or two of [`Role::DECODERS`].
    fn decoders(&self) -> Result<Vec<(Role, Graph)>> {
        Ok(vec![(Role::Decoder, self.decoder()?)])
    }
    /// The image encoder, if the bundle needs it: `image` -> `mean`.
    fn encoder(&self) -> Result<Option<Graph>> {
        Ok(None)
    }
    /// The manifest. The compiler fills in precision, profile and the branches of guidance.
    fn manifest(&self) -> Manifest;
}

/// A network before lowering.
#[derive(Clone)]
pub struct NetworkGraph {
    /// Name in the plan.
    pub name: String,
    /// What the network is for. The U-Net is [`Role::Denoiser`] until it is split.
    pub role: Role,
    /// The graph.
    pub graph: Graph,
}

/// The parts of a model as networks, in the order of their roles, with a prompt for each branch of
/// guidance. `batch` is the number of rows of the U-Net.
pub fn parts(model: &dyn Model, branches: usize, batch: usize) -> Result<Vec<NetworkGraph>> {
    parts_around(model, model.unet(batch)?, branches)
}

/// [`parts`] with a given U-Net.
pub fn parts_around(model: &dyn Model, unet: Graph, branches: usize) -> Result<Vec<NetworkGraph>> {
    let network = |name: &str, role, graph| NetworkGraph { name: name.to_string(), role, graph };
    let encoder = model.encoder()?;
    let encoder = encoder.map(|graph| network("encoder", Role::ImageEncoder, graph));
    let text_encoder = model.text_encoder(branches)?;
    let mut parts: Vec<NetworkGraph> = encoder.into_iter().collect();
    parts.extend([
        network("text_encoder", Role::TextEncoder, text_encoder),
        network("unet", Role::Denoiser, unet),
    ]);
    for (role, graph) in model.decoders()? {
        let name = if role == Role::TinyDecoder { "tiny_decoder" } else { "decoder" };
        parts.push(network(name, role, graph));
    }
    parts.sort_by_key(|part| part.role);
    Ok(parts)
}
