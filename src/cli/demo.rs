//! `dwarpal demo`: the main job on embedded backends, no prior steps.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::net::TcpListener;

use super::{FAILED, NO, YES, complain, counted, serve};
use crate::audit::event::{Backend, Event};
use crate::audit::layout;
use crate::audit::note::Vkey;
use crate::audit::read::{Fault, Log as Entries};
use crate::audit::verify::{self, Question};
use crate::clock::Clock;
use crate::config;
use crate::config::settings::{Log, LogFormat, LogLevel, Overrides};
use crate::demo::backend::{self, Site, World};
use crate::demo::pki::{self, Made};
use crate::demo::registry::{MOBILE_OF_TWO, MOBILE_TO_TRY};
use crate::demo::tour;
use crate::gateway::{Gateway, Running, StartError};
use crate::log;
use crate::subject::{Kind, Mark, Subject};

#[derive(Args)]
pub struct Arguments {
    /// End after the tour; exit code 0 only if every step gave what it should
    #[arg(long)]
    once: bool,
    /// Configuration to serve
    #[arg(long, default_value = "config", value_name = "DIRECTORY")]
    config: PathBuf,
    /// Where the development PKI is, or is made; the configuration names its files
    #[arg(long, default_value = "certs/dev", value_name = "DIRECTORY")]
    certs: PathBuf,
}

pub fn run(arguments: Arguments) -> u8 {
    log::init(Log { format: LogFormat::Human, level: LogLevel::Warn });
    let code = match start(&arguments) {
        Ok(demo) => show(&arguments, demo),
        Err(code) => code,
    };
    log::flush();
    code
}

struct Demo {
    running: Running,
    /// Holds the epoch key; removed with the demo.
    directory: tempfile::TempDir,
    registry: Arc<World>,
}

fn start(arguments: &Arguments) -> Result<Demo, u8> {
    let failed = |error: &dyn std::fmt::Display| {
        eprintln!("error: {error}");
        FAILED
    };
    log::start().map_err(|error| failed(&format!("log: {error}")))?;
    if !arguments.config.join("gateway.toml").is_file() {
        let place = arguments.config.display();
        return Err(failed(&format!("no {place}/gateway.toml here; run the demo in the repository, or name --config")));
    }
    match pki::ensure(&arguments.certs, Clock::system().now()).map_err(|error| failed(&error))? {
        Made::Fresh => println!("Made a development PKI in {}.", arguments.certs.display()),
        Made::Reused => println!("Using the development PKI in {}.", arguments.certs.display()),
    }
    let directory = tempfile::tempdir().map_err(|error| failed(&error))?;
    let registry = Arc::new(World::new(Site::Registry));
    let stock = Arc::new(World::new(Site::Stock));
    let backends = start_backends(&registry, &stock).map_err(|error| failed(&error))?;
    let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let overrides = Overrides {
        listen: Some(free),
        metrics: Some(free),
        directory: Some(directory.path().to_owned()),
        workers: None,
        backends,
    };
    let config = config::load(&arguments.config, &overrides).map_err(|problems| complain(&problems))?;
    let running = Gateway::start(config, Clock::system()).map_err(|error| match error {
        StartError::Configuration(problems) => complain(&problems),
        StartError::Failed(what) => failed(&what),
    })?;
    Ok(Demo { running, directory, registry })
}

/// Two synthetic backends on free ports, on a thread of their own that ends with the process.
fn start_backends(registry: &Arc<World>, stock: &Arc<World>) -> std::io::Result<Vec<(String, SocketAddr)>> {
    let mut addresses = Vec::new();
    let mut listeners = Vec::new();
    for (name, world) in [("registry", registry), ("stock", stock)] {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        addresses.push((name.to_owned(), listener.local_addr()?));
        listeners.push((listener, world.clone()));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("backends".to_owned()).spawn(move || {
        runtime.block_on(async move {
            for (listener, world) in listeners {
                match TcpListener::from_std(listener) {
                    Ok(listener) => drop(tokio::spawn(backend::serve(listener, world))),
                    Err(error) => tracing::error!(%error, "embedded backend"),
                }
            }
            std::future::pending::<()>().await;
        });
    })?;
    Ok(addresses)
}

fn show(arguments: &Arguments, demo: Demo) -> u8 {
    let Demo { running, directory, registry } = demo;
    let passed = match tour::guide(running.address, &arguments.certs, &registry) {
        Ok(passed) => passed,
        Err(error) => {
            eprintln!("error: {error}");
            false
        }
    };
    let proved = evidence(&running).inspect_err(|error| eprintln!("error: {error}")).unwrap_or(false);
    if !arguments.once {
        invite(&running, arguments, directory.path());
        match serve::Signals::listen() {
            Ok(mut signals) => signals.wait(|| ()),
            Err(error) => eprintln!("error: cannot wait for signals: {error}"),
        }
    }
    let stopped = running.stop();
    if let Err(error) = &stopped {
        eprintln!("error: {error}");
    }
    if passed && proved && stopped.is_ok() { YES } else { NO }
}

/// Shows what the audit has of the tour: that it is whole, and who asked for a person. Whether it is what it should be.
fn evidence(running: &Running) -> Result<bool, String> {
    let gateway = &running.gateway;
    let size = gateway.audit.checkpoint_now(Duration::from_secs(10)).ok_or("no checkpoint of the audit came about")?;
    let directory = gateway.snapshot().settings.audit_directory();
    let key =
        std::fs::read_to_string(directory.join(layout::VKEY)).map_err(|error| format!("the audit's key: {error}"))?;
    let key = Vkey::parse(key.trim_end()).map_err(|flaw| format!("the audit's key: {flaw}"))?;
    let question = Question { directory: &directory, key: &key, since: None, witnesses: &[] };
    let report = verify::verify(&question, &|_, _| ());
    let whole = report.faults.is_empty() && report.checkpoint.is_some_and(|signed| signed.size == size);
    println!("The audit, in {}:\n", directory.display());
    println!("  {size} entries, {} what {key} signed.", if whole { "all of them are" } else { "which are NOT" });

    let person = Subject::parse(Kind::Mobile, MOBILE_OF_TWO).map_err(|_| "the demo's own number is no number")?;
    let token = Mark::from_bytes(gateway.epochs().current().token(&person).key());
    println!("  Who asked for {MOBILE_OF_TWO}? It stands nowhere in there, but the epoch's key finds {token}:");
    let (mut told, mut refused) = (0, 0);
    let looked = Entries::open(&directory).and_then(|mut log| {
        log.each::<Fault>(0..size, |_, entry| {
            match Event::from_json(entry) {
                Ok(Event::Disclosure(request))
                    if request.subject.as_ref().is_some_and(|asked| asked.token == token) =>
                {
                    told += 1;
                    println!(
                        "    {} {} told of {}",
                        request.time,
                        request.partner.unwrap_or_default(),
                        people(request.backend)
                    );
                }
                Ok(Event::Denied(request)) if request.subject.as_ref().is_some_and(|asked| asked.token == token) => {
                    refused += 1
                }
                _ => {}
            }
            Ok(())
        })
    });
    looked.map_err(|fault| fault.to_string())?;
    println!(
        "    and {refused} refusals.\n  `dwarpal audit` asks such things of any log: verify, prove, who, show, tail, export.\n"
    );
    Ok(whole && told > 0 && refused > 0)
}

fn people(backend: Option<Backend>) -> String {
    counted(backend.and_then(|answered| answered.people).unwrap_or_default() as usize, "record")
}

/// What to paste next.
fn invite(running: &Running, arguments: &Arguments, data: &Path) {
    let (port, metrics) = (running.address.port(), running.metrics_address);
    let certs = arguments.certs.display();
    let curl = |partner: &str, rest: &str| {
        println!("  curl --cacert {certs}/ca.pem --cert {certs}/{partner}.pem --key {certs}/{partner}.key {rest}");
    };
    println!("The gateway stays up. Try:\n");
    let post = "-H 'Content-Type: application/json' -H 'X-Actor: hw-1042'";
    curl(
        "icmr",
        &format!(
            "{post} -d '{{\"mobile\":\"{MOBILE_TO_TRY}\",\"purpose\":\"care\"}}' https://localhost:{port}/v1/lookup/mobile"
        ),
    );
    curl(
        "icmr",
        &format!(
            "{post} -d '{{\"aadhaar\":\"9999 4105 7058\",\"purpose\":\"public-health\"}}' https://localhost:{port}/v1/lookup/aadhaar"
        ),
    );
    curl("icmr", &format!("https://localhost:{port}/.well-known/dwarpal/whoami"));
    curl(
        "state-health",
        &format!(
            "--interface 127.0.0.2 -H 'X-Purpose: certificate' -o certificate.pdf https://localhost:{port}/v1/certificates/12345678901234"
        ),
    );
    curl("state-health", &format!("--interface 127.0.0.2 https://localhost:{port}/v1/facilities/4711/stock"));
    curl("revoked", &format!("https://localhost:{port}/.well-known/dwarpal/whoami   # refused in the handshake"));
    println!("  curl http://{metrics}/metrics");
    println!("\nAnd of what it has logged, in {}:\n", data.display());
    let place = format!("--config {} --data {}", arguments.config.display(), data.display());
    println!("  echo 6412345678 | dwarpal audit who --kind mobile --id - {place}");
    println!("  dwarpal audit tail --follow {place}");
    println!("  dwarpal audit verify {0}/audit --key {0}/audit/vkey", data.display());
    println!("\nCtrl-C ends it.");
}
