//! What this process answers.

use std::sync::Arc;

use contract::timestamp::Timestamp;
use uuid::Uuid;

use super::{Answer, Asked, Instance, Question, Reply, Responder, Status, series::Measured};
use crate::{
    operator::{self, HealthCheck},
    telemetry::span_store::SpanStore,
};

/// This process, as it answers for all its roles.
pub(crate) struct Own {
    pub(crate) instance: Instance,
    pub(crate) checks: Arc<[HealthCheck]>,
    pub(crate) responders: Vec<Arc<dyn Responder>>,
    pub(crate) spans: SpanStore,
    pub(crate) measured: Arc<Measured>,
}

impl Own {
    /// Its answer, if it runs a role that is asked.
    pub(super) async fn answer(&self, asked: Asked, question: &Question) -> Option<Answer> {
        if !self.instance.is_asked(asked) {
            return None;
        }
        let reply = self.reply(question).await;
        Some(Answer { instance: self.instance.clone(), reply })
    }

    /// Its reply, for all its roles.
    pub(super) async fn reply(&self, question: &Question) -> Reply {
        match question {
            Question::Status => Reply::Status(Box::new(Status {
                health: operator::health(&self.checks),
                series: self.measured.series(),
            })),
            Question::Spans { trace_id } => {
                Reply::Spans { spans: self.spans.trace(trace_id), truncated: false }
            }
            question => {
                for responder in &self.responders {
                    if let Some(reply) = responder.answer(question.clone()).await {
                        return reply;
                    }
                }
                Reply::Refused("this process does not answer that".into())
            }
        }
    }
}

impl Instance {
    /// This process, which runs these roles.
    pub(crate) fn this(roles: Vec<String>) -> Self {
        Self {
            id: Uuid::new_v4().simple().to_string(),
            roles,
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            started_at: Timestamp::now(),
        }
    }

    fn is_asked(&self, asked: Asked) -> bool {
        let runs = |role: &str| self.roles.iter().any(|own| own == role);
        asked == Asked::All || asked.roles().iter().any(|role| runs(role))
    }
}
