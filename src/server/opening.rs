//! What opens the store of a server.

use std::sync::Arc;

use crate::broker::Broker;
use crate::budget::Budget;
use crate::clock::Clock;
use crate::config::Config;
#[cfg(feature = "nats")]
use crate::config::EngineKind;
use crate::engine::Engine;
use crate::engine::embedded::Embedded;
#[cfg(feature = "nats")]
use crate::engine::nats::{Feeds, Nats};
use crate::hub::Hubs;
use crate::server::error::EngineStartError;
#[cfg(feature = "nats")]
use crate::server::settings::nats_options;
use crate::server::settings::{broker_limits, budget, engine_settings, storage};

/// A store that is not open yet.
#[derive(Debug)]
pub(super) struct Opening {
    config: Arc<Config>,
    clock: Clock,
    hubs: Hubs,
    /// Is told by the hubs which addresses are read.
    #[cfg(feature = "nats")]
    feeds: Arc<Feeds>,
}

impl Opening {
    /// The store with these settings, and the settings.
    pub(super) fn new(config: Config, clock: Clock) -> (Arc<Config>, Self) {
        #[cfg(feature = "nats")]
        let feeds = Arc::new(Feeds::default());
        #[cfg(feature = "nats")]
        let hubs = match config.cluster.engine {
            EngineKind::Embedded => Hubs::new(config.hub_slots),
            EngineKind::Nats => Hubs::watched(config.hub_slots, feeds.clone()),
        };
        #[cfg(not(feature = "nats"))]
        let hubs = Hubs::new(config.hub_slots);
        let (hubs, config) = (hubs.within(budget(&config)), Arc::new(config));
        let opening = Self {
            config: Arc::clone(&config),
            clock,
            hubs,
            #[cfg(feature = "nats")]
            feeds,
        };
        (config, opening)
    }

    /// The memory budget of the server.
    pub(super) fn budget(&self) -> &Budget {
        self.hubs.budget()
    }

    /// Opens the store, which takes the longer the more it holds. A cluster is connected to by a thread that may block, within a
    /// tokio runtime.
    ///
    /// # Errors
    /// The store cannot be used.
    pub(super) fn open(self) -> Result<Broker, EngineStartError> {
        let engine = self.engine()?;
        let Self { config, clock, hubs, .. } = self;
        Ok(Broker::new(engine, hubs, broker_limits(&config), clock))
    }

    fn engine(&self) -> Result<Engine, EngineStartError> {
        let (config, hubs) = (&self.config, self.hubs.clone());
        let settings = engine_settings(config, self.clock);
        #[cfg(feature = "nats")]
        if config.cluster.engine == EngineKind::Nats {
            let parts = (hubs, Arc::clone(&self.feeds));
            let starting = Nats::start(settings, parts, nats_options(config));
            return Ok(tokio::runtime::Handle::current().block_on(starting)?.into());
        }
        Ok(Embedded::start(settings, hubs, &storage(config))?.into())
    }
}
