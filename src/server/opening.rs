//! What opens the store of a server.

use std::sync::Arc;

use crate::broker::Broker;
use crate::budget::Budget;
use crate::clock::Clock;
use crate::config::Config;
use crate::engine::embedded::{Embedded, OpenError};
use crate::hub::Hubs;
use crate::server::settings::{broker_limits, budget, engine_settings, storage};

/// A store that is not open yet.
#[derive(Debug)]
pub(super) struct Opening {
    config: Arc<Config>,
    clock: Clock,
    hubs: Hubs,
}

impl Opening {
    /// The store with these settings, and the settings.
    pub(super) fn new(config: Config, clock: Clock) -> (Arc<Config>, Self) {
        let (hubs, config) = (Hubs::new(config.hub_slots).within(budget(&config)), Arc::new(config));
        (Arc::clone(&config), Self { config, clock, hubs })
    }

    /// The memory budget of the server.
    pub(super) fn budget(&self) -> &Budget {
        self.hubs.budget()
    }

    /// Opens the store, which takes the longer the more it holds.
    ///
    /// # Errors
    /// The store cannot be used.
    pub(super) fn open(self) -> Result<Broker, OpenError> {
        let Self { config, clock, hubs } = self;
        let engine = Embedded::start(engine_settings(&config, clock), hubs.clone(), &storage(&config))?;
        Ok(Broker::new(engine.into(), hubs, broker_limits(&config), clock))
    }
}
