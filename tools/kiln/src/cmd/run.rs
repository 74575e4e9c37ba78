//! `kiln run`: the same command as `kiln-run` on the device.

use anyhow::Result;

use crate::pictures::Formats;

/// Make pictures from prompts with a compiled model.
#[derive(clap::Args)]
#[command(override_usage = "kiln run [OPTIONS] <FILE.kiln> --prompt <PROMPT> --output <FILE.png>
       kiln run [OPTIONS] <FILE.kiln> --prompts <FILE.jsonl>")]
#[command(after_help = "Examples:
  kiln run emoji.kiln --prompt 'a red heart' -o heart.png
  kiln run sd21.kiln --prompt 'a lighthouse at dusk' --negative-prompt blurry \\
      --seed 7 --steps 25 --guidance 8 --report report.json -o out.png
  kiln run emoji.kiln -p 'a rocket' --quality 95 -o rocket.jpg
  kiln run emoji.kiln -p 'a rocket' -o - | convert - -resize 512x512 large.gif
  kiln run emoji.kiln -p 'a rocket' --sampler dpm++2m --count 4 -o 'rocket-{seed}.png'
  kiln run emoji.kiln --prompts prompts.jsonl -o out.png  # lines: {\"prompt\": \"a rocket\"}
  kiln run emoji.kiln -p 'a crown' --sampler euler --preview-every 5 -o crown.png
  kiln run emoji.kiln -p 'a red heart' --init-image pizza.jpg --strength 0.6 -o heart.png
  kiln run emoji.kiln -p 'a robot' --eta 0.5 --latent x.npy --dump tensors --device 0 -o r.png")]
pub struct Args {
    #[command(flatten)]
    run: kiln_runtime::cli::RunArgs,
    /// Quality of .jpg files, 1 to 100
    #[arg(long, value_name = "N", default_value_t = 90,
          value_parser = clap::value_parser!(u8).range(1..=100))]
    quality: u8,
}

/// Makes the images.
pub fn run(args: Args) -> Result<()> {
    let formats = Formats { quality: args.quality };
    Ok(kiln_runtime::cli::run(&args.run, &[super::prepare::NAME], &formats)?)
}
