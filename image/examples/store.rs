//! Drives a store from the command line: `store ROOT import PATH [NAME]`,
//! `fetch NAME [insecure]`, `list`, `resolve NAME`, `verify`, `rm NAME`.

use std::io;
use std::path::Path;
use std::time::Instant;

use podvm_image::registry::{Credentials, Insecure, Patience, RegistrySettings};
use podvm_image::{FetchOptions, ImageSource, ImportOptions, Registries, Silent, Store, Uses};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let start = Instant::now();
    match run(&arguments) {
        Ok(()) => eprintln!("{:.1} ms", start.elapsed().as_secs_f64() * 1e3),
        Err(error) => {
            eprintln!("store: {error}");
            std::process::exit(1);
        }
    }
}

fn run(arguments: &[&str]) -> Result<(), Box<dyn std::error::Error>> {
    let (root, arguments) = arguments.split_first().ok_or("usage: store ROOT COMMAND …")?;
    let store = Store::open(*root)?;
    match arguments {
        ["import", path, rest @ ..] => {
            let ImageSource::Path { format, path } = ImageSource::parse_path(path) else {
                return Err("no path".into());
            };
            let name = rest.first().map(|name| name.parse()).transpose()?;
            let options = ImportOptions { format, name, ..ImportOptions::default() };
            println!("{:?}", store.import(Path::new(&path), &options, &Silent)?);
        }
        ["fetch", name, rest @ ..] => {
            let insecure = if rest == ["insecure"] { vec![Insecure::Http, Insecure::Tls] } else { Vec::new() };
            let registries =
                Registries::new(RegistrySettings::default(), Credentials::default(), insecure, Patience::default());
            println!("{:?}", store.fetch(&name.parse()?, &registries, &FetchOptions::default(), &Silent)?);
        }
        ["list"] => {
            for image in store.list()?.images {
                let names: Vec<String> = image.names.iter().map(ToString::to_string).collect();
                println!("{} {} {}", image.id.short(), image.size, names.join(" "));
            }
        }
        ["resolve", wanted] => println!("{:#?}", store.resolve(wanted)?),
        ["verify"] => {
            for problem in store.verify(false)? {
                println!("{problem}");
            }
        }
        ["rm", wanted] => println!("{:?}", store.remove(wanted, &no_uses)?),
        _ => {
            return Err(
                "commands: import PATH [NAME], fetch NAME [insecure], list, resolve NAME, verify, rm NAME".into()
            );
        }
    }
    Ok(())
}

/// This tool starts no pods.
fn no_uses() -> io::Result<Uses> {
    Ok(Uses::default())
}
