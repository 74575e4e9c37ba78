//! The checkpoint readers, on the model that ships with the project and on made-up files.

mod bundles;
mod family;
mod fixtures;
mod formats;
mod hostile;
mod layouts;
mod lora;
mod requirements;
mod sd21;
mod tiny;
mod torch;
