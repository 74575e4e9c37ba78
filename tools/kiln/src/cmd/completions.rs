//! `kiln completions`: scripts that let a shell complete arguments.

use anyhow::Result;
use clap_complete::Shell;

/// Print a script that lets a shell complete the arguments of kiln.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kiln completions bash > ~/.local/share/bash-completion/completions/kiln
  kiln completions zsh > ~/.zfunc/_kiln
  kiln completions fish > ~/.config/fish/completions/kiln.fish")]
pub struct Args {
    /// Shell to write for
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Prints the script. `command` is the whole program.
pub fn run(args: Args, mut command: clap::Command) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "kiln", &mut script);
    super::print::printed(|out| out.write_all(&script))
}
