//! How whoever proposes an entry learns what became of it.

use openraft::raft::responder::Responder;
use tokio::sync::oneshot;

use super::TypeConfig;

/// Takes the outcome of one proposal, on the thread that knows it first: nobody has to be woken for
/// what is only counted. What it does must be short.
pub struct Outcome<T>(Option<Box<dyn FnOnce(Option<T>) + Send>>);

impl<T: Send + 'static> Outcome<T> {
    /// Calls this once; with `None` if Raft has stopped before there was an outcome.
    #[must_use]
    pub fn told(take: impl FnOnce(Option<T>) + Send + 'static) -> Self {
        Self(Some(Box::new(take)))
    }

    /// To be waited for. The channel closes if there will be none.
    #[must_use]
    pub fn awaited() -> (Self, oneshot::Receiver<T>) {
        let (done, outcome) = oneshot::channel();
        let take = move |known: Option<T>| {
            if let Some(known) = known {
                // Whoever waited may have given up.
                let _ = done.send(known);
            }
        };
        (Self::told(take), outcome)
    }
}

impl<T> Drop for Outcome<T> {
    fn drop(&mut self) {
        if let Some(take) = self.0.take() {
            take(None);
        }
    }
}

impl<T: openraft::OptionalSend + 'static> Responder<TypeConfig, T> for Outcome<T> {
    fn on_complete(mut self, result: T) {
        if let Some(take) = self.0.take() {
            take(Some(result));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_outcome_is_told_once_and_its_absence_too() {
        let (outcome, known) = Outcome::awaited();
        outcome.on_complete(7);
        assert_eq!(known.await, Ok(7));
        let (outcome, unknown) = Outcome::<u32>::awaited();
        drop(outcome);
        assert!(unknown.await.is_err());
        let (done, told) = oneshot::channel();
        drop(Outcome::<u32>::told(move |known| {
            done.send(known).expect("it is waited for");
        }));
        assert_eq!(told.await, Ok(None));
    }
}
