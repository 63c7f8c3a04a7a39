//! `/openapi.json`: the description of all HTTP calls, with the limits in force.
//!
//! Each room describes its calls and the types that it encodes and decodes. What a derived schema cannot say is added
//! here.

use serde_json::{Value, json};
use utoipa::openapi::path::Operation;
use utoipa::openapi::request_body::RequestBody;
use utoipa::openapi::schema::{ArrayBuilder, Object, ObjectBuilder, OneOfBuilder, SchemaType};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{
    Components, Content, OpenApi, PathItem, Ref, RefOr, Required, Schema, SecurityRequirement,
};
use utoipa::{OpenApi as _, PartialSchema as _};
use utoipa_axum::router::OpenApiRouter;

use crate::config::{Auth, Config};
use crate::edge::ErrorBody;
use crate::protocol::Sender;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "x0-msg-server",
        description = "A message broker for browser sessions. WebSocket is described in /asyncapi.json.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    components(schemas(ErrorBody<'_>)),
    tags(
        (name = "messages", description = "Sending, reading and acknowledging"),
        (name = "topics", description = "Who reads topics"),
        (name = "sessions", description = "For backends: registered sessions and their connections"),
        (name = "operations", description = "For operators")
    )
)]
struct Document;

/// A router without routes, with the parts of the description that belong to no call.
pub(crate) fn described_router() -> OpenApiRouter {
    OpenApiRouter::with_openapi(Document::openapi())
}

/// Completes the description for a server with these settings; as JSON.
pub(super) fn complete(mut api: OpenApi, config: &Config) -> String {
    api.info.version = env!("CARGO_PKG_VERSION").to_owned();
    let components = api.components.get_or_insert_default();
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("A token (JWT) of a client, the id of a session that is registered with `proof`, or the API key of a backend"));
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer.build()));
    limit_ttl(components, config);
    describe_senders(components);
    describe_requests(components);
    describe_receipts(components);
    match config.access.auth {
        Auth::Open if config.access.has_api_keys() => {}
        Auth::Open => require_session_of_ack(components),
        Auth::Token => require_bearer(&mut api),
    }
    describe_bodies(&mut api);
    with_constants(serde_json::to_value(&api).expect("the description encodes")).to_string()
}

/// Fields with one value: the schema, the field and the value.
const CONSTANTS: [(&str, &str, bool); 7] = [
    ("Send", "receipt", false),
    ("Send", "request", false),
    ("SendWithReceipt", "request", false),
    ("SendRequest", "request", true),
    ("SendRequest", "receipt", false),
    ("SendWithReceipt", "receipt", true),
    ("SendWithReceipt", "volatile", false),
];

/// Adds the constants, which utoipa has no words for. `null` counts as `false`. It is no `enum` of both: generators of
/// clients take the values of an `enum` for names.
fn with_constants(mut document: Value) -> Value {
    for (schema, field, value) in CONSTANTS {
        let properties = &mut document["components"]["schemas"][schema]["properties"];
        let constant = json!({ "type": "boolean", "const": value });
        properties[field] = match value {
            true => constant,
            false => json!({ "oneOf": [constant, { "type": "null" }] }),
        };
    }
    document
}

fn object<'a>(components: &'a mut Components, name: &str) -> &'a mut Object {
    match components.schemas.get_mut(name) {
        Some(RefOr::T(Schema::Object(object))) => object,
        _ => panic!("the schema {name} is an object"),
    }
}

/// The longest time to live is a setting.
fn limit_ttl(components: &mut Components, config: &Config) {
    for name in ["Send", "Registration"] {
        if let Some(RefOr::T(Schema::Object(ttl))) = object(components, name).properties.get_mut("ttl") {
            ttl.maximum = Some(config.max_ttl.as_secs_f64().into());
        }
    }
}

/// A send object may hold its sender. Over WebSocket, where `hello` names the sender, it does not.
fn describe_senders(components: &mut Components) {
    let RefOr::T(Schema::Object(sender)) = Sender::schema() else {
        panic!("the schema of the sender is an object")
    };
    object(components, "Send").properties.extend(sender.properties);
}

/// A message with a receipt needs an id, goes to one session or a backend, and is not volatile. Others say `receipt: false` at most:
/// see [`CONSTANTS`].
fn describe_receipts(components: &mut Components) {
    let name = || Ref::from_schema_name("Name");
    let to = |kind: &str, title: &str| {
        ObjectBuilder::new().title(Some(title)).property(kind, name()).required(kind)
    };
    let receiver =
        OneOfBuilder::new().item(to("session", "ToSession")).item(to("backend", "ToBackend")).build();
    let mut with_receipt = object(components, "Send").clone();
    with_receipt.description = Some(
        "A message to send, with a receipt. The receipt arrives in the sender's mailbox when the message is acknowledged \
         or expires."
            .to_owned(),
    );
    with_receipt.required.extend(["id".to_owned(), "receipt".to_owned()]);
    let properties = &mut with_receipt.properties;
    properties.insert("id".to_owned(), name().into());
    properties.insert("to".to_owned(), Schema::OneOf(receiver).into());
    components.schemas.insert("SendWithReceipt".to_owned(), Schema::Object(with_receipt).into());
}

/// A request needs an id, and goes to a session, a user or a backend. Others say `request: false` at most: see [`CONSTANTS`].
fn describe_requests(components: &mut Components) {
    let name = || Ref::from_schema_name("Name");
    let to = |kind: &str, title: &str| {
        ObjectBuilder::new().title(Some(title)).property(kind, name()).required(kind)
    };
    let receiver = OneOfBuilder::new()
        .item(to("session", "ToSession"))
        .item(to("user", "ToUser"))
        .item(to("backend", "ToBackend"))
        .build();
    let mut request = object(components, "Send").clone();
    request.description = Some(
        "A message that asks for one answer. The reply arrives in the sender's mailbox, with the id of the request."
            .to_owned(),
    );
    request.required.extend(["id".to_owned(), "request".to_owned()]);
    request.properties.insert("id".to_owned(), name().into());
    request.properties.insert("to".to_owned(), Schema::OneOf(receiver).into());
    components.schemas.insert("SendRequest".to_owned(), Schema::Object(request).into());
}

/// In `open` mode without API keys nothing else names the mailbox of an acknowledgement.
fn require_session_of_ack(components: &mut Components) {
    let ack = object(components, "Ack");
    ack.required.push("session".to_owned());
    ack.properties.insert("session".to_owned(), Ref::from_schema_name("Name").into());
}

/// In `token` mode each call below `/v1` needs a token or an API key.
fn require_bearer(api: &mut OpenApi) {
    let required = SecurityRequirement::new::<_, [&str; 0], &str>("bearer", []);
    for (path, item) in &mut api.paths.paths {
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete];
        for operation in
            operations.into_iter().flatten().filter(|_| path.starts_with("/v1/") || path == "/metrics")
        {
            operation.security = Some(vec![required.clone()]);
        }
    }
}

/// One message or poll, or several. And a registration without a body.
fn describe_bodies(api: &mut OpenApi) {
    let sends = OneOfBuilder::new()
        .item(Ref::from_schema_name("Send"))
        .item(Ref::from_schema_name("SendWithReceipt"))
        .item(Ref::from_schema_name("SendRequest"))
        .item(several("Up to 1,000 messages, each like a single one. The answer has one item for each"));
    let polls = OneOfBuilder::new().item(Ref::from_schema_name("Poll")).item(
        several("1 to 16 polls, each like a single one. The answer has one item for each")
            .min_items(Some(1))
            .max_items(Some(16)),
    );
    for (path, bodies) in [("/v1/messages", sends), ("/v1/messages/poll", polls)] {
        let body = request_body(api, path, |item| &mut item.post);
        body.content.insert("application/json".to_owned(), Content::new(Some(bodies)).into());
    }
    request_body(api, "/v1/sessions/{id}", |item| &mut item.put).required = Some(Required::False);
}

/// An array of what is checked by itself: a wrong item fails alone.
fn several(description: &str) -> ArrayBuilder {
    let items = ObjectBuilder::new().schema_type(SchemaType::AnyValue);
    ArrayBuilder::new().items(items).description(Some(description))
}

fn request_body<'a>(
    api: &'a mut OpenApi,
    path: &str,
    operation: impl FnOnce(&mut PathItem) -> &mut Option<Operation>,
) -> &'a mut RequestBody {
    let operation = api.paths.paths.get_mut(path).and_then(|item| operation(item).as_mut());
    match operation.and_then(|operation| operation.request_body.as_mut()) {
        Some(RefOr::T(body)) => body,
        _ => panic!("a call of {path} has a body"),
    }
}

#[cfg(test)]
mod tests {
    use utoipa_axum::routes;

    use super::*;
    use crate::protocol::{AckBody, PollBody, SendRequest, SessionBody};

    #[utoipa::path(post, path = "/v1/messages", request_body = SendRequest)]
    async fn send() {}

    #[utoipa::path(post, path = "/v1/messages/poll", request_body = PollBody)]
    async fn post_poll() {}

    #[utoipa::path(post, path = "/v1/ack", request_body = AckBody)]
    async fn ack() {}

    #[utoipa::path(put, path = "/v1/sessions/{id}", request_body = SessionBody)]
    async fn register() {}

    #[utoipa::path(get, path = "/healthz")]
    async fn health() {}

    fn described(config: &Config) -> Value {
        let router = described_router()
            .routes(routes!(send))
            .routes(routes!(post_poll))
            .routes(routes!(ack))
            .routes(routes!(register))
            .routes(routes!(health));
        serde_json::from_str(&complete(router.into_openapi(), config)).unwrap()
    }

    #[test]
    fn the_longest_ttl_is_the_one_in_force() {
        let config = Config { max_ttl: std::time::Duration::from_secs(90), ..Config::default() };
        let document = described(&config);
        for name in ["Send", "SendWithReceipt", "Registration"] {
            let ttl = &document["components"]["schemas"][name]["properties"]["ttl"];
            assert_eq!(ttl["maximum"].as_f64(), Some(90.0), "{name}");
        }
    }

    #[test]
    fn a_receipt_needs_an_id_and_one_mailbox() {
        let document = described(&Config::default());
        let schemas = &document["components"]["schemas"];
        let with_receipt = &schemas["SendWithReceipt"];
        let no = json!({ "oneOf": [{ "type": "boolean", "const": false }, { "type": "null" }] });
        assert_eq!(schemas["Send"]["properties"]["receipt"], no);
        assert_eq!(with_receipt["properties"]["volatile"], no);
        assert_eq!(with_receipt["properties"]["receipt"], json!({ "type": "boolean", "const": true }));
        // Generators of clients make names of the values of an `enum`: only strings can be names.
        let mut parts = vec![&document];
        while let Some(part) = parts.pop() {
            let values = part.get("enum").and_then(Value::as_array).into_iter().flatten();
            assert!(values.into_iter().all(Value::is_string), "{part}");
            parts.extend(part.as_object().into_iter().flat_map(|object| object.values()));
            parts.extend(part.as_array().into_iter().flatten());
        }
        for field in ["id", "receipt", "to", "payload"] {
            assert!(with_receipt["required"].as_array().unwrap().contains(&json!(field)), "{field}");
        }
        let receivers = &with_receipt["properties"]["to"]["oneOf"];
        assert_eq!(receivers[0]["required"], json!(["session"]));
        assert_eq!(receivers[1]["required"], json!(["backend"]));
        let body = &document["paths"]["/v1/messages"]["post"]["requestBody"]["content"]["application/json"];
        assert_eq!(body["schema"]["oneOf"].as_array().unwrap().len(), 4);
        let request = &schemas["SendRequest"];
        assert_eq!(
            (&schemas["Send"]["properties"]["request"], &with_receipt["properties"]["request"]),
            (&no, &no)
        );
        assert_eq!(request["properties"]["request"], json!({ "type": "boolean", "const": true }));
        for field in ["id", "request", "to", "payload"] {
            assert!(request["required"].as_array().unwrap().contains(&json!(field)), "{field}");
        }
    }

    #[test]
    fn a_send_object_may_hold_its_sender() {
        let document = described(&Config::default());
        for name in ["Send", "SendWithReceipt"] {
            let Value::Object(properties) = &document["components"]["schemas"][name]["properties"] else {
                panic!("{name} has properties")
            };
            assert!(properties.contains_key("session") && properties.contains_key("token"), "{name}");
        }
    }

    #[test]
    fn a_registration_may_have_no_body() {
        let document = described(&Config::default());
        let required =
            |path: &str, method: &str| document["paths"][path][method]["requestBody"]["required"].clone();
        assert_eq!(required("/v1/sessions/{id}", "put"), json!(false));
        assert_eq!(required("/v1/messages", "post"), json!(true));
    }

    #[test]
    fn only_token_mode_asks_for_credentials() {
        let mut config = Config::default();
        let open = described(&config);
        assert_eq!(open["paths"]["/v1/ack"]["post"]["security"], Value::Null);
        assert!(
            open["components"]["schemas"]["Ack"]["required"].as_array().unwrap().contains(&json!("session"))
        );
        config.access.auth = Auth::Token;
        let token = described(&config);
        assert_eq!(token["paths"]["/v1/ack"]["post"]["security"], json!([{ "bearer": [] }]));
        assert_eq!(token["paths"]["/healthz"]["get"]["security"], Value::Null);
        assert_eq!(token["components"]["schemas"]["Ack"]["required"], json!(["seq"]));
        assert_eq!(token["components"]["securitySchemes"]["bearer"]["scheme"], "bearer");
    }
}
