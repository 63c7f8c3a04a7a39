//! The `x0-msg-server` command.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io::{self, Write};
use std::net::TcpListener;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use x0_msg_server::cli::{
    self, BackupArgs, CheckArgs, ConfigCommand, HealthArgs, ListenArgs, SendArgs, TokenArgs,
};
use x0_msg_server::clock::Clock;
use x0_msg_server::config::{Auth, Config, LoadError, Sources, load, unknown_variables};
use x0_msg_server::descriptors;
use x0_msg_server::handover::{Listeners, Predecessor};
use x0_msg_server::log::{Levels, Log};
use x0_msg_server::server::{self, Ended, Reloaded, Reloader, ServeError, Starting, Upgrades, Watchdog};

/// Returns the memory of ended sessions to the operating system. The allocator of the C library keeps it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A message broker for browser sessions: WebSocket first, with Server-Sent Events and long-poll as fallbacks.
///
/// Without a command it serves. It logs its address. Open that in two browser tabs and send messages between them.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    config: Config,
}

const EXAMPLES: &str = "\
Examples:
  x0-msg-server                                   serve on 127.0.0.1:8080
  x0-msg-server listen --session A                print the messages of session A
  x0-msg-server send --to A '{\"hello\":1}'         send a message to session A
  x0-msg-server check                             verify ./x0-msg-data
  x0-msg-server config print                      print the settings, and where each comes from
  x0-msg-server send --topic news '\"hi\"'          send a message to all readers of topic news

Exit codes:
  0   done; a broker was stopped in order
  1   a command failed, or a broker did not start
  2   wrong arguments or settings
  74  the store of a running broker has failed; the last line of the log says why. Start it again: that recovers what is
      stored";

/// The exit code after a failure of the store (`EX_IOERR` of `sysexits.h`). A supervisor starts the broker again.
const STORE_FAILED: u8 = 74;

/// The exit code for wrong arguments or settings, which is clap's too.
const INVALID: u8 = 2;

#[derive(Subcommand)]
enum Command {
    /// Run the broker (the default)
    Serve(Box<Config>),
    /// Send one message and wait until it is stored
    Send(SendArgs),
    /// Print messages as they arrive, and acknowledge them. Reconnects and resumes
    Listen(ListenArgs),
    /// Make a token for development
    Token(TokenArgs),
    /// Verify a store without changing it, and print what it holds. Fails if the store is damaged
    Check(CheckArgs),
    /// Copy the store into a new directory, also of a running broker, and verify the copy
    Backup(BackupArgs),
    /// Put a copy of `backup` in the place of a store
    Restore(BackupArgs),
    /// Move the store of one machine into empty streams of NATS. Takes the flags that the nodes will have
    #[cfg(feature = "nats")]
    Migrate(Box<Config>),
    /// Check or print the settings of a broker
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print what makes a shell complete commands and flags: `source <(x0-msg-server completions bash)`
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the health of a running broker. Fails if it does not answer
    Health(HealthArgs),
}

impl Cli {
    /// The settings of the broker, if the command takes them.
    fn config_mut(&mut self) -> Option<&mut Config> {
        match &mut self.command {
            None => Some(&mut self.config),
            Some(Command::Serve(config)) => Some(config),
            #[cfg(feature = "nats")]
            Some(Command::Migrate(config)) => Some(config),
            Some(Command::Config(command)) => Some(command.config_mut()),
            Some(_) => None,
        }
    }

    /// The command line of this process, with the settings of the environment and of the file.
    fn load() -> Result<Self, LoadError> {
        let (mut cli, sources): (Self, Sources) = load(std::env::args_os())?;
        let completed = match cli.config_mut() {
            Some(config) => config.complete(sources),
            None => Ok(()),
        };
        let completed = completed.and_then(|()| match &cli.command {
            Some(Command::Send(args)) => args.validate(),
            _ => Ok(()),
        });
        completed.map_err(|text| Self::command().error(ErrorKind::ValueValidation, text))?;
        Ok(cli)
    }
}

fn main() -> ExitCode {
    let cli = match Cli::load() {
        Ok(cli) => cli,
        Err(LoadError::Arguments(error)) => error.exit(),
        Err(error) => {
            cli::print_error(&error.into());
            return INVALID.into();
        }
    };
    let done = match cli.command {
        None => return serve_with_log(cli.config),
        Some(Command::Serve(config)) => return serve_with_log(*config),
        Some(Command::Send(args)) => run(cli::send(args)),
        Some(Command::Listen(args)) => run(cli::listen(args)),
        Some(Command::Token(args)) => cli::token(args),
        Some(Command::Check(args)) => cli::check(&args),
        Some(Command::Backup(args)) => cli::backup(&args),
        Some(Command::Restore(args)) => cli::restore(&args),
        #[cfg(feature = "nats")]
        Some(Command::Migrate(config)) => run(cli::migrate(*config)),
        Some(Command::Config(mut command)) => {
            let warnings = warnings(command.config_mut());
            run(cli::config(command, warnings))
        }
        Some(Command::Completions { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), env!("CARGO_PKG_NAME"), &mut script);
            cli::print(String::from_utf8_lossy(&script).trim_end())
        }
        Some(Command::Health(args)) => run(cli::health(args)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::print_error(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(command: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(command);
    // A disk that does not answer must not keep the process from ending.
    runtime.shutdown_background();
    done
}

/// Serves with a log, to which the error of a failed start goes too.
fn serve_with_log(config: Config) -> ExitCode {
    let log = match Log::start(&config.log_level, config.sources.is_explicit("log-level")) {
        Ok(log) => log,
        Err(error) => {
            _ = writeln!(std::io::stderr(), "x0-msg-server: cannot log: {error}");
            return ExitCode::FAILURE;
        }
    };
    match run(serve(config, log.levels())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log.line(&format!("x0-msg-server: {error:#}"));
            match error.downcast_ref() {
                Some(ServeError::Store(_)) => STORE_FAILED.into(),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// What is set and has no effect.
fn warnings(config: &Config) -> Vec<String> {
    let texts = |(name, value): (OsString, OsString)| {
        Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
    };
    let variables = std::env::vars_os().filter_map(texts);
    unknown_variables(&Cli::command(), variables).into_iter().chain(config.without_effect()).collect()
}

/// Reads the settings again, and takes them over as far as a running broker can.
fn reload(reloader: &Reloader, levels: &Levels) {
    let loaded = Cli::load().map(|mut cli| cli.config_mut().cloned()).map_err(|error| error.to_string());
    let config = match loaded {
        Ok(Some(config)) => config,
        Ok(None) => return,
        Err(error) => {
            let error = error.trim();
            tracing::error!(error, "the settings cannot be read again; all of them stay as they are");
            return;
        }
    };
    match reloader.reload(&config) {
        Ok(Reloaded { taken, refused }) => {
            levels.set(&config.log_level, config.sources.is_explicit("log-level"));
            for setting in refused {
                tracing::warn!(setting, "this setting has changed; a restart is needed to take it over");
            }
            tracing::info!(changed = taken.join(" "), "the settings were read again");
        }
        Err(error) => {
            tracing::error!(%error, "the settings cannot be taken over; all of them stay as they are");
        }
    }
}

/// Where the broker listens: at the sockets of the process that hands over or of a service manager, and at new ones.
async fn listeners(config: &Config, predecessor: Option<&Predecessor>) -> Result<Listeners> {
    let mut given = match predecessor {
        Some(predecessor) => predecessor.listeners().await?,
        None => Listeners::of_service_manager()?,
    };
    let is_handed_over = predecessor.is_some();
    // A service manager knows where to listen. What was handed over counts only where the settings still name it.
    let clients = match given.clients.is_empty() || is_handed_over {
        true => server::listen(config.listen, &mut given.clients).map_err(|error| {
            anyhow!("cannot listen on {}: {error}; choose another address with --listen", config.listen)
        })?,
        false => given.clients,
    };
    let operators = match config.ops_listen {
        Some(on) if given.operators.is_empty() || is_handed_over => server::listen(on, &mut given.operators)
            .map_err(|error| {
                anyhow!("cannot listen on {on}: {error}; choose another address with --ops-listen")
            })?,
        None if is_handed_over => Vec::new(),
        _ => given.operators,
    };
    Ok(Listeners { clients, operators })
}

/// Warns of sockets that other machines reach.
fn warn_of_open_ports(config: &Config, listeners: &Listeners) {
    let open = |listeners: &[TcpListener]| {
        let addresses = listeners.iter().filter_map(|listener| listener.local_addr().ok());
        addresses.into_iter().find(|address| !address.ip().to_canonical().is_loopback())
    };
    if let Some(address) = open(&listeners.operators) {
        tracing::warn!(
            %address,
            "--ops-listen opens the metrics to other machines; everyone who reaches it may read them without a key"
        );
    }
    if let Some(address) = open(&listeners.clients).filter(|_| config.access.auth == Auth::Open) {
        tracing::warn!(
            %address,
            "--listen opens this broker to other machines; everyone who reaches it may read and send as any session; every \
             host name is served, so web pages may reach it by DNS rebinding; any web page may read a session that it \
             guesses at the addresses of today's x0 client; --auth token requires credentials"
        );
    }
}

async fn serve(config: Config, levels: Levels) -> Result<()> {
    let mut predecessor = Predecessor::of_this_process()?;
    descriptors::raise_limit();
    for warning in warnings(&config) {
        tracing::warn!("{warning}");
    }
    // Before everything else, so that a signal during the start stops the server gracefully too.
    let mut signals = Signals::new()?;
    let mut listeners = listeners(&config, predecessor.as_ref()).await?;
    warn_of_open_ports(&config, &listeners);
    let _watchdog = Watchdog::start();
    loop {
        let server = Starting::new(config.clone(), listeners, Clock::Wall)?;
        let stops = [server.shutdown().clone(), server.hurry().clone()];
        let (reloader, upgrades) = (server.reloader().clone(), server.upgrades().clone());
        let handling = signals.handle(stops, (reloader, &levels), &upgrades);
        let ended = tokio::select! {
            ended = server.serve(predecessor.take()) => ended?,
            never = handling => match never {},
        };
        match ended {
            Ended::Abandoned(sockets) => listeners = sockets,
            Ended::Stopped | Ended::HandedOver => return Ok(()),
        }
    }
}

/// The signals that mean something to the broker.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    upgrade: Signal,
    /// Without a handler, a file beyond its size limit would kill the process. Now the write fails.
    _file_size: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            upgrade: signal(SignalKind::user_defined2())?,
            _file_size: signal(SignalKind::from_raw(libc::SIGXFSZ))?,
        })
    }

    /// Does what signals ask for.
    async fn handle(
        &mut self,
        stops: [CancellationToken; 2],
        (reloader, levels): (Reloader, &Levels),
        upgrades: &Upgrades,
    ) -> Infallible {
        let mut stops = stops.into_iter();
        loop {
            tokio::select! {
                _ = self.terminate.recv() => drop(stops.next().map(|stop| stop.cancel())),
                _ = self.interrupt.recv() => drop(stops.next().map(|stop| stop.cancel())),
                _ = self.hangup.recv() => {
                    let (reloader, levels) = (reloader.clone(), levels.clone());
                    // It reads files. A panic is logged, and changes nothing.
                    _ = tokio::task::spawn_blocking(move || reload(&reloader, &levels)).await;
                }
                _ = self.upgrade.recv() => upgrades.request(),
            }
        }
    }
}
