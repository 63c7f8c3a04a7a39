//! Texts that only the broker can read.

use super::*;

const LIFETIME: Duration = Duration::from_secs(60);

/// By the time that passes, whatever the machine's clock is set to meanwhile.
pub(super) async fn an_encrypted_text_is_read_until_its_time_is_over(lab: Lab) {
    let (engine, _) = lab.engine();
    let text = engine.encrypt(b"content", LIFETIME);
    assert!(!text.contains("content"));
    for time in [0, lab.clock.now() + 86_400_000] {
        lab.clock.set(time);
        assert_eq!(engine.decrypt(&text).unwrap(), b"content");
    }
    lab.clock.advance(LIFETIME - Duration::from_millis(1));
    assert_eq!(engine.decrypt(&text).unwrap(), b"content");
    lab.clock.advance(Duration::from_millis(1));
    assert_eq!(engine.decrypt(&text), Err(DecryptError::Expired));
}

pub(super) async fn an_encrypted_text_is_read_by_its_own_store_only(lab: Lab) {
    let (engine, _) = lab.engine();
    let text = engine.encrypt(b"content", LIFETIME);
    engine.close();
    drop(engine);
    let (other, _) = lab.engine();
    assert_eq!(other.decrypt(&text), Err(DecryptError::Foreign));
}

pub(super) async fn an_encrypted_text_is_read_after_a_restart(lab: Lab) {
    for crash in [false, true] {
        let (engine, _) = lab.engine();
        let text = engine.encrypt(b"content", LIFETIME);
        let engine = lab.again(engine, crash);
        assert_eq!(engine.decrypt(&text).unwrap(), b"content", "crash: {crash}");
    }
}
