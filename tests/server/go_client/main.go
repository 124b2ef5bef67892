// A client that shares no code with Hone: Go's own gRPC, with stubs that protoc makes from the .proto files when the test
// runs (go_test.sh). Over the Unix socket it uploads data, submits, watches to the end, and holds, releases and cancels
// a second job. Over TCP it shows which certificates come in, and that one replaced on disk is used without a
// restart of the daemon.
//
//	go_client make-certificates FOLDER
//	go_client jobs SOCKET SPEC.json DATA.jsonl
//	go_client tls ADDRESS FOLDER
package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	hone "hone/v1"
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func require(condition bool, format string, values ...interface{}) {
	if !condition {
		panic(fmt.Errorf(format, values...))
	}
}

func deadline(seconds int) context.Context {
	within, _ := context.WithTimeout(context.Background(), time.Duration(seconds)*time.Second)
	return within
}

// ---- jobs

func upload(connection *grpc.ClientConn, path string) string {
	data, err := os.ReadFile(path)
	check(err)
	sum := sha256.Sum256(data)
	digest := hex.EncodeToString(sum[:])
	stream, err := hone.NewDatasetsClient(connection).UploadBlob(deadline(60))
	check(err)
	check(stream.Send(&hone.UploadBlobRequest{Digest: digest, TotalBytes: uint64(len(data))}))
	for len(data) > 0 {
		size := len(data)
		if size > 1<<20 {
			size = 1 << 20
		}
		check(stream.Send(&hone.UploadBlobRequest{Data: data[:size]}))
		data = data[size:]
	}
	answer, err := stream.CloseAndRecv()
	check(err)
	require(answer.Digest == digest, "the digest is %s", answer.Digest)
	return "sha256:" + digest
}

// Follows a job to its rest; all its events must come, in order and without a gap.
func watch(jobs hone.JobsClient, name string) (hone.JobState, int) {
	stream, err := jobs.WatchJob(deadline(120), &hone.WatchJobRequest{Name: name})
	check(err)
	sequence, steps := uint64(0), 0
	state := hone.JobState_JOB_STATE_UNSPECIFIED
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		check(err)
		if event.Sequence != 0 {
			require(event.Sequence == sequence+1, "a gap: %d then %d", sequence, event.Sequence)
			sequence = event.Sequence
		}
		if change := event.GetState(); change != nil {
			state = change.To
			fmt.Printf("%4d %s %s %s\n", event.Sequence, change.To, change.Reason, change.Message)
		}
		if step := event.GetStep(); step != nil {
			steps++
		}
	}
	job, err := jobs.GetJob(deadline(10), &hone.GetJobRequest{Name: name})
	check(err)
	require(job.LastSequence == sequence, "%d events came of %d", sequence, job.LastSequence)
	return state, steps
}

func runJobs(socket, specPath, dataPath string) {
	connection, err := grpc.Dial("unix:"+socket, grpc.WithInsecure())
	check(err)
	defer connection.Close()
	jobs := hone.NewJobsClient(connection)

	_, err = jobs.CreateJob(deadline(60), &hone.CreateJobRequest{})
	refused := status.Convert(err)
	require(refused.Code() == codes.InvalidArgument, "an empty spec: %v", err)
	infos := 0
	for _, detail := range refused.Details() {
		if info, is := detail.(*errdetails.ErrorInfo); is {
			infos++
			require(info.Domain == "hone.dev", "%v", info)
		}
	}
	require(infos == 1, "an error without an ErrorInfo: %v", refused.Details())
	fmt.Println("an empty spec:", refused.Message())

	text, err := os.ReadFile(specPath)
	check(err)
	spec := &hone.JobSpec{}
	check(protojson.Unmarshal(text, spec))
	train := upload(connection, dataPath)
	spec.Data.Train = &train
	request := &hone.CreateJobRequest{Spec: spec, RequestId: fmt.Sprintf("go-%d", time.Now().UnixNano())}
	job, err := jobs.CreateJob(deadline(60), request)
	check(err)
	again, err := jobs.CreateJob(deadline(60), request)
	check(err)
	require(again.Id == job.Id, "one request_id made two jobs")
	state, steps := watch(jobs, job.Name)
	require(state == hone.JobState_SUCCEEDED && steps > 0, "the job ended %s after %d steps", state, steps)
	fmt.Println(job.Name, "ended", state, "after", steps, "step records")

	// A second one, held, released, and cancelled while it runs.
	long := "steps=100000 sleep=10"
	spec.Name = &long
	second, err := jobs.CreateJob(deadline(60), &hone.CreateJobRequest{Spec: spec, Options: &hone.JobOptions{Hold: true}})
	check(err)
	require(second.State == hone.JobState_HELD, "%s", second.State)
	name := second.Name
	_, err = jobs.ReleaseJob(deadline(10), &hone.ReleaseJobRequest{Name: name})
	check(err)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		second, err = jobs.GetJob(deadline(10), &hone.GetJobRequest{Name: name})
		check(err)
		if second.State == hone.JobState_RUNNING {
			break
		}
		require(time.Now().Before(end), "the second job is still %s", second.State)
	}
	_, err = jobs.CancelJob(deadline(10), &hone.CancelJobRequest{Name: name})
	check(err)
	state, _ = watch(jobs, name)
	require(state == hone.JobState_CANCELLED, "the second job ended %s", state)
	_, err = jobs.PauseJob(deadline(10), &hone.PauseJobRequest{Name: name})
	require(status.Code(err) == codes.FailedPrecondition, "a cancelled job was paused: %v", err)
	fmt.Println(name, "ended", state)
}

// ---- TLS

func read(path string) []byte {
	data, err := os.ReadFile(path)
	check(err)
	return data
}

// Asks for the daemon's status with this client certificate ("": none); the server's certificate as it showed it.
func ask(address, folder, client string) (*x509.Certificate, error) {
	roots := x509.NewCertPool()
	require(roots.AppendCertsFromPEM(read(filepath.Join(folder, "ca.pem"))), "no authority")
	var shown *x509.Certificate
	config := &tls.Config{RootCAs: roots, ServerName: "localhost", VerifyConnection: func(state tls.ConnectionState) error {
		shown = state.PeerCertificates[0]
		return nil
	}}
	if client != "" {
		pair, err := tls.LoadX509KeyPair(filepath.Join(folder, client+".pem"), filepath.Join(folder, client+".key"))
		check(err)
		// Whatever authorities the server asks for: the wrong one is sent all the same.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	connection, err := grpc.Dial(address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	check(err)
	defer connection.Close()
	_, err = hone.NewDaemonClient(connection).GetStatus(deadline(5), &hone.GetStatusRequest{})
	return shown, err
}

func runTLS(address, folder string) {
	first, err := ask(address, folder, "good")
	check(err)
	fmt.Println("a valid certificate comes in")
	for _, client := range []string{"wrong", "expired", ""} {
		_, err := ask(address, folder, client)
		require(err != nil, "the client certificate %q was accepted", client)
		require(status.Code(err) == codes.Unavailable, "%v", err)
		if client == "" {
			client = "no"
		}
		fmt.Printf("%s certificate: refused: %s\n", client, status.Convert(err).Message())
	}
	plain, err := net.Dial("tcp", address)
	check(err)
	plain.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
	plain.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, err = io.ReadAll(plain)
	var late net.Error
	require(!(errors.As(err, &late) && late.Timeout()), "plain HTTP/2 was not cut off")
	fmt.Println("plain HTTP/2: cut off")
	install(folder, "next", "server")
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		shown, err := ask(address, folder, "good")
		check(err)
		if !shown.Equal(first) {
			break
		}
		require(time.Now().Before(end), "the certificate replaced on disk is not used")
	}
	fmt.Println("the certificate replaced on disk is used")
}

func main() {
	switch {
	case len(os.Args) == 3 && os.Args[1] == "make-certificates":
		makeCertificates(os.Args[2])
	case len(os.Args) == 5 && os.Args[1] == "jobs":
		runJobs(os.Args[2], os.Args[3], os.Args[4])
	case len(os.Args) == 4 && os.Args[1] == "tls":
		runTLS(os.Args[2], os.Args[3])
	default:
		fmt.Fprintln(os.Stderr, "usage: go_client make-certificates FOLDER | jobs SOCKET SPEC DATA | tls ADDRESS FOLDER")
		os.Exit(2)
	}
}
