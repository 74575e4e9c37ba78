//! Blocks of the networks, one file each, and the layers that they share.

mod attention;
mod feed_forward;
mod layers;
mod resample;
mod resnet;
mod spatial_transformer;

pub use attention::{causal_attention, cross_attention, merged_causal_attention, pixel_attention};
pub use feed_forward::{feed_forward, geglu_feed_forward};
pub use layers::Layers;
pub use resample::{downsample, upsample};
pub use resnet::{ResnetKeys, resnet};
pub use spatial_transformer::{TransformerForm, spatial_transformer};
