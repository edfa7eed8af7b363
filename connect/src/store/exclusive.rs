//! Uploads in parts that never replace an object.
//!
//! S3 makes the completion of an upload conditional with `If-None-Match: *`, as it does a put.
//! `object_store` can only do the latter, so the header is added on its way out; like those that
//! `object_store` adds itself, it is not part of the signature. A server that does not know the
//! condition on completions ignores it: then another run that completes the same name in the same
//! moment could be overwritten.

use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};
use std::future::Future;
use std::pin::Pin;

/// Connects as usual.
#[derive(Debug)]
pub(super) struct ExclusiveConnector;

impl HttpConnector for ExclusiveConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Exclusive(ReqwestConnector::default().connect(options)?)))
    }
}

#[derive(Debug)]
struct Exclusive(HttpClient);

// `async_trait` written out: the trait wants it.
impl HttpService for Exclusive {
    fn call<'s, 'f>(
        &'s self,
        mut request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'f>>
    where
        's: 'f,
    {
        if completes_upload(&request)
            && let Ok(any) = "*".parse()
        {
            request.headers_mut().insert("if-none-match", any);
        }
        Box::pin(self.0.execute(request))
    }
}

/// Starting an upload is a POST as well, with `?uploads`.
fn completes_upload(request: &HttpRequest) -> bool {
    let query = request.uri().query().unwrap_or_default();
    request.method() == "POST" && query.split('&').any(|pair| pair.starts_with("uploadId="))
}
