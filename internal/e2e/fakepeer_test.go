package e2e

import (
	"encoding/binary"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/testenv"
	"github.com/damselfly-io/damselfly/internal/wire"
)

// fakePeer is a member of the cluster that claims to hold content, and sends
// what a test wants.
type fakePeer struct {
	asked atomic.Int64 // requests for pieces
}

// join adds a peer that claims to hold all of the blob with the given digest
// and size. send answers for a piece.
func (c *cluster) join(name, digest string, size int64, send func(w http.ResponseWriter, r *http.Request, length int64)) *fakePeer {
	c.t.Helper()
	p, table := &fakePeer{}, task.Uniform(size)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/tasks/{task}/haves", func(w http.ResponseWriter, r *http.Request) {
		all := binary.AppendUvarint(binary.AppendUvarint(nil, 0), uint64(table.Count()))
		_, _ = w.Write(all)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	mux.HandleFunc("GET /v1/tasks/{task}/pieces/{n}", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.Atoi(r.PathValue("n"))
		if err != nil || n >= table.Count() {
			http.NotFound(w, r)
			return
		}
		p.asked.Add(1)
		_, length := table.Piece(n)
		send(w, r, length)
	})
	srv := httptest.NewUnstartedServer(mux)
	lis, err := (&net.ListenConfig{}).Listen(c.t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	srv.Listener.Close() //nolint:errcheck // replaced
	srv.Listener = lis
	srv.Start()
	c.t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })

	conn, err := grpc.NewClient("passthrough:///"+c.sc.GRPC, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = conn.Close() })
	stream, err := apiv1.NewSwarmClient(conn).Connect(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	for _, m := range []*apiv1.PeerMessage{
		{Kind: &apiv1.PeerMessage_Hello{Hello: &apiv1.Hello{Name: name, PeerAddress: lis.Addr().String()}}},
		{Kind: &apiv1.PeerMessage_Held{Held: &apiv1.Held{TaskId: digest, Table: wire.FromTable(table), Complete: true}}},
	} {
		if err := stream.Send(m); err != nil {
			c.t.Fatal(err)
		}
	}
	go func() {
		for err := error(nil); err == nil; {
			_, err = stream.Recv()
		}
	}()
	testenv.Eventually(c.t, func() bool { return len(c.holders(digest)) == 1 }, name+" to be known as a holder")
	return p
}

// zeros sends as many bytes as asked for, all wrong.
func zeros(w http.ResponseWriter, _ *http.Request, length int64) {
	w.Header().Set("Content-Length", strconv.FormatInt(length, 10))
	_, _ = w.Write(make([]byte, length))
}

// hang answers with a header and then with nothing.
func hang(w http.ResponseWriter, r *http.Request, length int64) {
	w.Header().Set("Content-Length", strconv.FormatInt(length, 10))
	_ = http.NewResponseController(w).Flush()
	<-r.Context().Done()
}
