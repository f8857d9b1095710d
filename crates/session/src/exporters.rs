//! Exporters that a client names when the result is known.

use std::collections::BTreeMap;

use cooper_proto::MAX_MESSAGE_SIZE;
use cooper_proto::exporter::exporter_client::ExporterClient;
use cooper_proto::exporter::{ExporterRequest, FinalizeExportRequest, FindExportersRequest};

use tonic::Code;

use crate::{Session, SessionError};

const FIND: &str = "/moby.exporter.v1.Exporter/FindExporters";
const FINALIZE: &str = "/moby.exporter.v1.Exporter/FinalizeExport";

/// What the client wants to have done with a result of this metadata. Its references are those
/// of the gateway. A client that does not say wants nothing.
///
/// # Errors
/// The client's error.
///
/// # Cancel safety
/// Cancel safe.
pub async fn find(
    session: &Session,
    metadata: BTreeMap<String, Vec<u8>>,
    references: Vec<String>,
) -> Result<Vec<ExporterRequest>, SessionError> {
    if !session.supports(FIND) {
        return Ok(Vec::new());
    }
    let mut client =
        ExporterClient::new(session.channel()).max_decoding_message_size(MAX_MESSAGE_SIZE);
    let request = FindExportersRequest {
        metadata: metadata.into_iter().collect(),
        refs: references,
    };
    let found = client.find_exporters(request).await;
    let found = found.map_err(SessionError::call(FIND))?;
    Ok(found.into_inner().exporters)
}

/// Tells the client what its exporters answered. A client that does not want to know is not told.
///
/// # Errors
/// The client's error.
///
/// # Cancel safety
/// Cancel safe.
pub async fn finalize(
    session: &Session,
    response: &BTreeMap<String, String>,
) -> Result<(), SessionError> {
    if !session.supports(FINALIZE) {
        return Ok(());
    }
    let mut client = ExporterClient::new(session.channel());
    let response = response.iter().map(|(k, v)| (k.clone(), v.clone()));
    let request = FinalizeExportRequest {
        exporter_response: response.collect(),
    };
    match client.finalize_export(request).await {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::Unimplemented => Ok(()),
        Err(status) => Err(SessionError::call(FINALIZE)(status)),
    }
}
