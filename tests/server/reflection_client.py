#!/usr/bin/python3
"""A client that knows nothing of Hone: it asks the server for its services and messages by reflection, builds them at run
time, submits a job and follows Watch to the end. Debian's python3-grpcio and python3-protobuf only, no generated code.

    reflection_client.py --socket /path/honed.sock --spec job.json [--timeout 600] [--request-id ID] [--upload answers.jsonl]

job.json is a hone.v1.JobSpec as proto JSON. With --upload the file goes up by digest and becomes data.train. Prints one
line per event and exits 0 if the job ended SUCCEEDED, all its events came, in order and without a gap.
"""
import argparse
import hashlib
import json
import sys
import uuid

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

F = descriptor_pb2.FieldDescriptorProto


def reflection_messages():
    """The few messages of grpc.reflection.v1alpha that are needed, from the public protocol."""
    file = descriptor_pb2.FileDescriptorProto(name="reflection.proto", package="grpc.reflection.v1alpha", syntax="proto3")

    def message(name, *fields):
        entry = file.message_type.add(name=name)
        for field_name, number, kind, label, type_name in fields:
            field = entry.field.add(name=field_name, number=number, type=kind, label=label)
            if type_name:
                field.type_name = ".grpc.reflection.v1alpha." + type_name

    one, many = F.LABEL_OPTIONAL, F.LABEL_REPEATED
    message("ServerReflectionRequest", ("host", 1, F.TYPE_STRING, one, None), ("file_by_filename", 3, F.TYPE_STRING, one, None),
            ("file_containing_symbol", 4, F.TYPE_STRING, one, None), ("list_services", 7, F.TYPE_STRING, one, None))
    message("FileDescriptorResponse", ("file_descriptor_proto", 1, F.TYPE_BYTES, many, None))
    message("ServiceResponse", ("name", 1, F.TYPE_STRING, one, None))
    message("ListServiceResponse", ("service", 1, F.TYPE_MESSAGE, many, "ServiceResponse"))
    message("ErrorResponse", ("error_code", 1, F.TYPE_INT32, one, None), ("error_message", 2, F.TYPE_STRING, one, None))
    message("ServerReflectionResponse", ("file_descriptor_response", 4, F.TYPE_MESSAGE, one, "FileDescriptorResponse"),
            ("list_services_response", 6, F.TYPE_MESSAGE, one, "ListServiceResponse"),
            ("error_response", 7, F.TYPE_MESSAGE, one, "ErrorResponse"))
    # list_services must be sent even when empty, so its presence has to be tracked: one oneof, as in the protocol.
    request = file.message_type[0]
    request.oneof_decl.add(name="message_request")
    for field in request.field[1:]:
        field.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    factory = message_factory.MessageFactory(pool)
    get = lambda name: factory.GetPrototype(pool.FindMessageTypeByName("grpc.reflection.v1alpha." + name))
    return get("ServerReflectionRequest"), get("ServerReflectionResponse")


class Reflected:
    """Everything learnt from the server."""

    def __init__(self, channel):
        self.channel = channel
        request, response = reflection_messages()
        self.call = channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=request.SerializeToString, response_deserializer=response.FromString)
        self.request = request
        self.pool = descriptor_pool.DescriptorPool()
        self.known = set()
        self.factory = message_factory.MessageFactory(self.pool)

    def ask(self, **what):
        answer = next(iter(self.call(iter([self.request(**what)]), timeout=10)))
        if answer.HasField("error_response"):
            raise RuntimeError(answer.error_response.error_message)
        return answer

    def services(self):
        return [service.name for service in self.ask(list_services="*").list_services_response.service]

    def learn(self, **what):
        files = [descriptor_pb2.FileDescriptorProto.FromString(data)
                 for data in self.ask(**what).file_descriptor_response.file_descriptor_proto]
        for file in files:
            if file.name in self.known:
                continue
            self.known.add(file.name)
            for dependency in file.dependency:
                if dependency not in self.known:
                    self.learn(file_by_filename=dependency)
            self.pool.Add(file)

    def message(self, name):
        return self.factory.GetPrototype(self.pool.FindMessageTypeByName(name))

    def method(self, service, name):
        self.learn(file_containing_symbol=service)
        method = self.pool.FindServiceByName(service).FindMethodByName(name)
        request = self.factory.GetPrototype(method.input_type)
        response = self.factory.GetPrototype(method.output_type)
        proto = descriptor_pb2.MethodDescriptorProto()
        method.CopyToProto(proto)
        kind = ("stream" if proto.client_streaming else "unary") + "_" + ("stream" if proto.server_streaming else "unary")
        call = getattr(self.channel, kind)(f"/{service}/{name}", request_serializer=request.SerializeToString,
                                           response_deserializer=response.FromString)
        return call, request


def rich(error):
    """The google.rpc.Status in the trailer, as text: its strings are readable without its schema."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            return value
    return b""


def upload(server, path):
    with open(path, "rb") as file:
        data = file.read()
    digest = hashlib.sha256(data).hexdigest()
    call, request = server.method("hone.v1.Datasets", "UploadBlob")
    step = 1 << 20

    def parts():
        yield request(digest=digest, total_bytes=len(data))
        for at in range(0, len(data), step):
            yield request(data=data[at:at + step])

    answer = call(parts(), timeout=60)
    assert answer.digest == digest and answer.bytes == len(data), answer
    return "sha256:" + digest


def main():
    flags = argparse.ArgumentParser()
    flags.add_argument("--socket", required=True)
    flags.add_argument("--spec", required=True)
    flags.add_argument("--upload")
    flags.add_argument("--request-id", default=str(uuid.uuid4()))
    flags.add_argument("--timeout", type=float, default=600)
    flags = flags.parse_args()
    channel = grpc.insecure_channel("unix:" + flags.socket)
    server = Reflected(channel)

    services = server.services()
    print("services:", ", ".join(services))
    for needed in ("hone.v1.Jobs", "hone.v1.Models", "hone.v1.Datasets", "hone.v1.Daemon", "grpc.health.v1.Health"):
        assert needed in services, needed
    # gRPC's built-in health service has no descriptor to reflect; its two one-field messages are written out by hand.
    name = b"hone.v1.Jobs"
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    assert check(bytes([0x0A, len(name)]) + name, timeout=10) == b"\x08\x01", "not serving"

    create, create_request = server.method("hone.v1.Jobs", "CreateJob")
    try:
        create(create_request(), timeout=60)
        raise AssertionError("an empty spec was accepted")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
        details = rich(error)
        assert b"google.rpc.ErrorInfo" in details and b"hone.dev" in details and b"google.rpc.BadRequest" in details, details
        print("an empty spec:", error.details())

    with open(flags.spec) as file:
        spec = json.load(file)
    if flags.upload:
        spec["data"]["train"] = upload(server, flags.upload)
    request = create_request(request_id=flags.request_id)
    json_format.ParseDict(spec, request.spec)
    job = create(request, timeout=flags.timeout)
    again = create(request, timeout=flags.timeout)
    assert again.id == job.id, "one request_id made two jobs"
    print("job:", job.name)

    watch, watch_request = server.method("hone.v1.Jobs", "WatchJob")
    states = server.pool.FindEnumTypeByName("hone.v1.JobState").values_by_number
    sequence, state, steps = 0, "", 0
    for event in watch(watch_request(name=job.name), timeout=flags.timeout):
        kind = event.WhichOneof("event")
        if event.sequence:
            assert event.sequence == sequence + 1, f"a gap: {sequence} then {event.sequence}"
            sequence = event.sequence
        if kind == "state":
            state = states[event.state.to].name
            print(f"{event.sequence:4} {state} {event.state.reason} {event.state.message}")
        elif kind == "step":
            steps += 1
            print(f"     step {event.step.step}/{event.step.steps} loss {event.step.loss:.4f}")
        else:
            print(f"{event.sequence:4} {kind}")
    get, get_request = server.method("hone.v1.Jobs", "GetJob")
    final = get(get_request(name=job.name), timeout=10)
    assert final.last_sequence == sequence, (final.last_sequence, sequence)
    print(f"ended {state} after {sequence} events and {steps} step records")

    # A second one is held, released, paused wherever it is, resumed and cancelled.
    def act(verb):
        method, method_request = server.method("hone.v1.Jobs", verb + "Job")
        return states[method(method_request(name=second.name), timeout=30).state].name

    request = create_request(request_id=str(uuid.uuid4()))
    json_format.ParseDict(spec, request.spec)
    request.options.hold = True
    request.options.labels["from"] = "python"
    second = create(request, timeout=flags.timeout)
    assert states[second.state].name == "HELD", second.state
    trail = [act("Release"), act("Pause")]
    for _ in watch(watch_request(name=second.name), timeout=60):
        pass
    trail.append(states[get(get_request(name=second.name), timeout=10).state].name)
    if trail[-1] == "PAUSED":
        trail.append(act("Resume"))
        trail.append(act("Cancel"))
        for _ in watch(watch_request(name=second.name), timeout=60):
            pass
        trail.append(states[get(get_request(name=second.name), timeout=10).state].name)
    print("a held job:", " ".join(trail))
    assert trail[-1] == "CANCELLED", trail
    listing, list_request = server.method("hone.v1.Jobs", "ListJobs")
    found = listing(list_request(labels={"from": "python"}), timeout=10).jobs
    assert [job.id for job in found] == [second.id], found
    return 0 if state == "SUCCEEDED" else 1


if __name__ == "__main__":
    sys.exit(main())
