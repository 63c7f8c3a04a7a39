//! How a node carries out changes.

use super::*;

/// Carries out the changes of a node, one after the other. Their answers take different times.
pub(super) async fn carry_out(node: std::sync::Weak<Inner>, mut changes: mpsc::UnboundedReceiver<Change>) {
    while let Some(change) = changes.recv().await {
        let Some(inner) = node.upgrade() else { return };
        inner.chance.delay().await;
        match change {
            Change::Append(append, answer) => inner.append(append, answer).await,
            Change::Register(register, answer) => inner.register(&register, answer).await,
            Change::End(session, revoked_for, answer) => inner.end(&session, revoked_for, answer).await,
        }
    }
}

impl Inner {
    async fn append(&self, append: Append, answer: oneshot::Sender<Result<Seq, EngineError>>) {
        let address = append.address.clone();
        let stored = self.cluster.engine().append(append).await;
        if let Ok(seq) = stored {
            let mut known = lock(&self.stored);
            let newest = known.entry(address).or_default();
            *newest = (*newest).max(seq);
        }
        self.answer(answer, stored);
    }

    async fn register(
        self: &Arc<Self>,
        register: &Register,
        answer: oneshot::Sender<Result<Seq, RegisterError>>,
    ) {
        self.outdate(&register.session);
        let registered = self.cluster.engine().register(register).await;
        self.answer(answer, registered);
    }

    async fn end(
        self: &Arc<Self>,
        session: &SessionId,
        revoked_for: Duration,
        answer: oneshot::Sender<Result<Seq, EngineError>>,
    ) {
        self.outdate(session);
        let address = Address::Session(session.clone());
        self.feeds.close(Some(&address));
        let ended = self.cluster.engine().end(session, revoked_for).await;
        self.hubs.end(&address, EndReason::SessionEnded);
        self.answer(answer, ended);
    }

    /// Keeps for a while what the copy of the directory says of a session before a change.
    fn outdate(self: &Arc<Self>, session: &SessionId) {
        let primary = self.cluster.engine();
        let id = self.next_id.fetch_add(1, Ordering::SeqCst);
        let old = || Outdated {
            id,
            registration: primary.registration(session),
            is_revoked: primary.is_revoked(session),
        };
        lock(&self.outdated).entry(session.clone()).or_insert_with(old).id = id;
        let (inner, session, late) = (Arc::clone(self), session.clone(), self.chance.up_to(20));
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(late)).await;
            let mut outdated = lock(&inner.outdated);
            if outdated.get(&session).is_some_and(|old| old.id == id) {
                outdated.remove(&session);
            }
            drop(outdated);
            inner.arrivals.wake(&session);
        });
    }

    fn answer<T: Send + 'static>(&self, answer: oneshot::Sender<T>, with: T) {
        let chance = self.chance.clone();
        tokio::spawn(async move {
            chance.delay().await;
            // Nobody may wait for it any more.
            _ = answer.send(with);
        });
    }
}
