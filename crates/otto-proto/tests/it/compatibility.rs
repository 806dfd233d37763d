//! Frozen names, numbers and types never change and are never reused.

use std::collections::BTreeMap;

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};

const FROZEN: &[u8] = include_bytes!("../../frozen/descriptor_set.bin");

/// Section "Wire contract" of the design, word for word: the contract of the earlier system.
const CONTRACT: &str = "
LogEntry: worker_id 1, task_id 2, timestamp 3, level 4, source 5, message 6, metadata 7 map
LogResponse: status 1 Status, message 2, sequence 3 int64
LogResponse.Status: ACK 0, RETRY 1, DROP 2
WorkerRegistration: worker_id 1, task_id 2, metadata 3 WorkerMetadata, server_endpoint 4
WorkerMetadata: pod_name 1, namespace 2, node_name 3, created_at 4, labels 5 map
RegistrationResponse: status 1 Status, message 2, session_id 3, config 4 LoggingConfig
RegistrationResponse.Status: SUCCESS 0, ALREADY_REGISTERED 1, SERVER_FULL 2, INVALID_REQUEST 3
LoggingConfig: rate_limit 1 int32, buffer_size 2 int32, max_message_size 3 int32, include_metadata 4 bool
WorkerLogEntry: worker_id 1, task_id 2, timestamp 3, level 4, source 5, message 6, pod_metadata 7 WorkerMetadata, metadata 8 map
LogForwardResponse: status 1 Status, message 2, sequence 3 int64, throttle_ms 4 int32
LogForwardResponse.Status: ACK 0, RETRY 1, DROP 2
WorkerStatusNotification: worker_id 1, task_id 2, status 3 StatusType, timestamp 4, reason 5, metadata 6 map
WorkerStatusNotification.StatusType: CREATED 0, RUNNING 1, COMPLETED 2, FAILED 3, TERMINATED 4
WorkerStatusAck: status 1 Status, message 2
WorkerStatusAck.Status: RECEIVED 0, IGNORED 1, ERROR 2
ScaleRequest: task_id 1, repository 2, commit_sha 3, worker_count 4 int32, build_config 5 map, triggered_by 6, reason 7, metadata 8 map
ScaleResponse: status 1 Status, message 2, processed_count 3 int32, worker_pod_names 4 repeated, started_at 5, completed_at 6
ScaleResponse.Status: SUCCESS 0, FAILED 1, PARTIAL_SUCCESS 2, ALREADY_PROCESSED 3
WorkerStatusRequest: task_id 1, worker_pod_name 2, status_filter 3
WorkerStatusResponse: total_count 1 int32, running_count 2 int32, pending_count 3 int32, succeeded_count 4 int32, failed_count 5 int32, workers 6 repeated WorkerPodStatus
WorkerPodStatus: pod_name 1, task_id 2, status 3, created_at 4, started_at 5, completed_at 6, node_name 7, pod_ip 8, labels 9 map, error_message 10
PipelineRequest: pipeline_id 1, name 2, stages 3 repeated PipelineStage, repository 4, commit_sha 5, triggered_by 6, metadata 7 map
PipelineStage: stage_id 1, type 2, name 3, worker_count 4 int32, depends_on 5 repeated, config 6 map, image 7, command 8 repeated, args 9 repeated, timeout_seconds 10 int32, retry_policy 11 RetryPolicy
RetryPolicy: max_attempts 1 int32, retry_delay_seconds 2 int32, retryable_failures 3 repeated
PipelineProgress: pipeline_id 1, stage_id 2, status 3 StageStatus, message 4, worker_pod_names 5 repeated, progress_percentage 6 int32, timestamp 7, started_at 8, completed_at 9, error_message 10, metrics 11 StageMetrics
StageStatus: STAGE_PENDING 0, STAGE_RUNNING 1, STAGE_COMPLETED 2, STAGE_FAILED 3, STAGE_CANCELLED 4, STAGE_SKIPPED 5, STAGE_RETRYING 6
StageMetrics: duration_seconds 1 int32, successful_workers 2 int32, failed_workers 3 int32, total_workers 4 int32, avg_cpu_usage 5 float, avg_memory_mb 6 float
LogStreamingService: RegisterWorker WorkerRegistration RegistrationResponse, StreamLogs stream LogEntry stream LogResponse
OttoHandlerLogService: ForwardWorkerLogs stream WorkerLogEntry stream LogForwardResponse, NotifyWorkerStatus WorkerStatusNotification WorkerStatusAck
OttoscalerService: ScaleUp ScaleRequest ScaleResponse, ScaleDown ScaleRequest ScaleResponse, GetWorkerStatus WorkerStatusRequest WorkerStatusResponse, ExecutePipeline PipelineRequest stream PipelineProgress
";

/// Every message, enum and service as one line: name → items.
fn describe(set: &[u8]) -> BTreeMap<String, Vec<String>> {
    let set = FileDescriptorSet::decode(set).unwrap();
    let mut all = BTreeMap::new();
    for file in set.file.iter().filter(|file| file.package() == "ottoscaler.v1") {
        for message in &file.message_type {
            describe_message(&mut all, "", message);
        }
        for value in &file.enum_type {
            describe_enum(&mut all, "", value);
        }
        for service in &file.service {
            let methods = service.method.iter().map(|method| {
                let part = |stream: bool, name: &str| format!("{}{}", if stream { "stream " } else { "" }, short(name));
                format!(
                    "{} {} {}",
                    method.name(),
                    part(method.client_streaming(), method.input_type()),
                    part(method.server_streaming(), method.output_type())
                )
            });
            all.insert(service.name().to_owned(), methods.collect());
        }
    }
    all
}

fn describe_message(all: &mut BTreeMap<String, Vec<String>>, prefix: &str, message: &DescriptorProto) {
    let name = format!("{prefix}{}", message.name());
    let maps: Vec<_> = message
        .nested_type
        .iter()
        .filter(|nested| nested.options.as_ref().is_some_and(|options| options.map_entry()))
        .map(DescriptorProto::name)
        .collect();
    all.insert(name.clone(), message.field.iter().map(|field| describe_field(field, &maps)).collect());
    for value in &message.enum_type {
        describe_enum(all, &format!("{name}."), value);
    }
}

fn describe_field(field: &FieldDescriptorProto, maps: &[&str]) -> String {
    let mut text = format!("{} {}", field.name(), field.number());
    let kind = short(field.type_name());
    if maps.contains(&kind) {
        return text + " map";
    }
    if field.label() == Label::Repeated {
        text += " repeated";
    }
    match field.r#type() {
        Type::String => {}
        Type::Message | Type::Enum => text += &format!(" {kind}"),
        scalar => text += &format!(" {}", scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase()),
    }
    text
}

fn describe_enum(all: &mut BTreeMap<String, Vec<String>>, prefix: &str, value: &EnumDescriptorProto) {
    let values = value.value.iter().map(|value| format!("{} {}", value.name(), value.number()));
    all.insert(format!("{prefix}{}", value.name()), values.collect());
}

fn short(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// What of `frozen` is not in `current` as it was.
fn broken(frozen: &BTreeMap<String, Vec<String>>, current: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let mut broken = Vec::new();
    for (name, items) in frozen {
        let Some(now) = current.get(name) else {
            broken.push(format!("{name} is gone"));
            continue;
        };
        broken.extend(
            items.iter().filter(|item| !now.contains(item)).map(|item| format!("{name}: `{item}` changed or gone")),
        );
    }
    broken
}

#[test]
fn the_frozen_contract_is_the_design() {
    let mut expected = BTreeMap::new();
    for line in CONTRACT.lines().filter(|line| !line.is_empty()) {
        let (name, items) = line.split_once(": ").unwrap();
        expected.insert(name.to_owned(), items.split(", ").map(str::to_owned).collect::<Vec<_>>());
    }
    assert_eq!(describe(FROZEN), expected);
}

#[test]
fn nothing_frozen_has_changed() {
    assert_eq!(broken(&describe(FROZEN), &describe(otto_proto::FILE_DESCRIPTOR_SET)), Vec::<String>::new());
}

#[test]
fn a_changed_or_reused_number_is_refused() {
    let frozen = describe(FROZEN);
    let mut current = frozen.clone();
    current.get_mut("LogEntry").unwrap()[5] = "message 9".to_owned();
    current.get_mut("LogResponse").unwrap()[2] = "offset 3 int64".to_owned();
    current.remove("StageMetrics");
    assert_eq!(
        broken(&frozen, &current),
        [
            "LogEntry: `message 6` changed or gone",
            "LogResponse: `sequence 3 int64` changed or gone",
            "StageMetrics is gone"
        ]
    );
}
