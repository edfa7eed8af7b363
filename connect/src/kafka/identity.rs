//! Which topic a name means. A topic that is deleted and made anew has another id under the same
//! name, and offsets of the one mean nothing in the other.
//!
//! The answer comes from the controller, or from a broker that speaks for it.
//!
//! The client library has this request; its Rust binding does not, so that the library is called
//! here.

use rdkafka::bindings as native;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use std::ffi::CString;
use std::ptr::NonNull;
use std::time::Duration;

/// What is known of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The topic's id, in hexadecimal.
    Known(String),
    /// There is a topic, whose brokers give no ids (before Kafka 2.8).
    NoIds,
    /// There is no such topic now.
    Missing,
}

/// Which topic a name means.
///
/// # Errors
/// What the broker, or the way to it, says; after `timeout` at the latest.
pub fn identity<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    timeout: Duration,
) -> Result<Identity, KafkaError> {
    let Ok(name) = CString::new(topic) else { return Ok(Identity::Missing) };
    let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let refused = || KafkaError::AdminOp(RDKafkaErrorCode::InvalidArgument);
    let op = native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
    let handle = client.native_ptr();
    let mut names = [name.as_ptr()];
    // SAFETY: `handle` is the client's, which is borrowed to the end. Each object below is made
    // here, is not null, and is given back once by its guard; what is read of the event is read
    // while the event lives. `names` outlives the call that copies it.
    unsafe {
        let queue = Guard::of(native::rd_kafka_queue_new(handle), native::rd_kafka_queue_destroy);
        let options = native::rd_kafka_AdminOptions_new(handle, op);
        let options = Guard::of(options, native::rd_kafka_AdminOptions_destroy);
        let topics = native::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), 1);
        let topics = Guard::of(topics, native::rd_kafka_TopicCollection_destroy);
        let (Some(queue), Some(options), Some(topics)) = (queue, options, topics) else {
            return Err(refused());
        };
        native::rd_kafka_AdminOptions_set_request_timeout(
            options.get(),
            timeout,
            std::ptr::null_mut(),
            0,
        );
        native::rd_kafka_DescribeTopics(handle, topics.get(), options.get(), queue.get());
        // The request's own limit comes first.
        let event = native::rd_kafka_queue_poll(queue.get(), timeout.saturating_add(1_000));
        let Some(event) = Guard::of(event, native::rd_kafka_event_destroy) else {
            return Err(KafkaError::AdminOp(RDKafkaErrorCode::OperationTimedOut));
        };
        let code = RDKafkaErrorCode::from(native::rd_kafka_event_error(event.get()));
        match code {
            RDKafkaErrorCode::NoError => {}
            RDKafkaErrorCode::UnsupportedFeature | RDKafkaErrorCode::UnsupportedVersion => {
                return Ok(Identity::NoIds);
            }
            code => return Err(KafkaError::AdminOp(code)),
        }
        of_event(event.get()).unwrap_or_else(|| Err(refused()))
    }
}

/// What an answer says of the only topic that it is about; None if it is no such answer.
///
/// # Safety
/// The event lives.
unsafe fn of_event(event: *mut native::rd_kafka_event_t) -> Option<Result<Identity, KafkaError>> {
    // SAFETY: what is read belongs to the event, and nothing is read of a null pointer.
    unsafe {
        let result = native::rd_kafka_event_DescribeTopics_result(event);
        if result.is_null() {
            return None;
        }
        let mut count = 0;
        let found = native::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        if found.is_null() || count == 0 {
            return Some(Ok(Identity::Missing));
        }
        let error = native::rd_kafka_TopicDescription_error(*found);
        if !error.is_null() {
            let code = RDKafkaErrorCode::from(native::rd_kafka_error_code(error));
            return Some(match code {
                RDKafkaErrorCode::NoError => Ok(Identity::NoIds),
                RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => {
                    Ok(Identity::Missing)
                }
                code => Err(KafkaError::AdminOp(code)),
            });
        }
        let id = native::rd_kafka_TopicDescription_topic_id(*found);
        if id.is_null() {
            return Some(Ok(Identity::NoIds));
        }
        let high = native::rd_kafka_Uuid_most_significant_bits(id).cast_unsigned();
        let low = native::rd_kafka_Uuid_least_significant_bits(id).cast_unsigned();
        // All zeros is no id.
        Some(Ok(match (high, low) {
            (0, 0) => Identity::NoIds,
            _ => Identity::Known(format!("{high:016x}{low:016x}")),
        }))
    }
}

/// An object of the library, and what gives it back.
struct Guard<T> {
    object: NonNull<T>,
    destroy: unsafe extern "C" fn(*mut T),
}

impl<T> Guard<T> {
    /// None of a null pointer.
    fn of(object: *mut T, destroy: unsafe extern "C" fn(*mut T)) -> Option<Guard<T>> {
        NonNull::new(object).map(|object| Guard { object, destroy })
    }

    fn get(&self) -> *mut T {
        self.object.as_ptr()
    }
}

impl<T> Drop for Guard<T> {
    fn drop(&mut self) {
        // SAFETY: the object came from the library, and is given back nowhere else.
        unsafe { (self.destroy)(self.object.as_ptr()) }
    }
}
