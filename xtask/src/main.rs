//! The project's own commands, called as `cargo xtask COMMAND`.

mod bench;
mod build;
mod demo;
mod image_bench;
mod images;
mod lab;
mod memory_bench;
mod setup;
mod start_bench;
mod step;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's own commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// From a fresh clone to etcd in a micro-VM: sets up, builds, runs it twice on one volume
    Demo(demo::Arguments),
    /// Installs the Debian packages that the other commands need
    Setup,
    /// Builds podvm, the supervisor and the guest kernel into target/podvm
    Build {
        /// How to build it.
        #[command(flatten)]
        arguments: build::Arguments,
        /// Build the podvm for the tests of crashes, with fault points and without optimization, into target/podvm-faults
        #[arg(long)]
        faults: bool,
    },
    /// Measures what booting a guest costs, beside QEMU's microvm
    Bench(bench::Arguments),
    /// Measures what fetching images costs, beside podman, skopeo and umoci
    ImageBench(image_bench::Arguments),
    /// Measures what pods of one image share under kvm, and what starting them takes, by how their layers get there
    MemoryBench(memory_bench::Arguments),
    /// Measures what starting a pod behind namespaces takes, beside crun and runc
    StartBench(start_bench::Arguments),
    /// Makes the images that tests and the demo run, in target/test-images
    Images,
    /// Sets up, builds and runs all tests; the last line counts them
    Test(test::Arguments),
    /// Runs a command in the KVM lab: a machine whose /dev/kvm runs guests.
    Lab(lab::Arguments),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Setup => setup::run().map(|()| ExitCode::SUCCESS),
        Command::Build { arguments, faults } => {
            build::run(build::Arguments { faults, ..arguments }).map(|()| ExitCode::SUCCESS)
        }
        Command::Bench(arguments) => bench::run(&arguments),
        Command::ImageBench(arguments) => image_bench::run(&arguments),
        Command::MemoryBench(arguments) => memory_bench::run(&arguments),
        Command::StartBench(arguments) => start_bench::run(&arguments),
        Command::Images => images::make_all().map(|()| ExitCode::SUCCESS),
        Command::Test(arguments) => test::run(&arguments),
        Command::Lab(arguments) => lab::run(arguments),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        super::Arguments::command().debug_assert();
    }
}
