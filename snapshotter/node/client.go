package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/internal/task"
)

// DefaultSocket is where dfdaemon listens by default.
const DefaultSocket = "/run/damselfly/dfdaemon.sock"

// Priority orders what the daemon fetches.
type Priority = apiv1.Priority

// Priorities, highest first: somebody waits for the bytes; they are expected to
// be read soon; they are brought ahead of any use.
const (
	Demand     = apiv1.Priority_PRIORITY_DEMAND
	Prefetch   = apiv1.Priority_PRIORITY_PREFETCH
	Background = apiv1.Priority_PRIORITY_PREHEAT
)

// Options configures a Client.
type Options struct {
	// Socket of the daemon. Default DefaultSocket.
	Socket string
	// MirrorSocket is where the daemon serves registries. Default: Socket with
	// "-http" before its extension.
	MirrorSocket string
	// Patience is how long ReadBlob, Prefetch and Discard wait in all for a
	// daemon that cannot be reached. Default 5 s; negative: not at all.
	Patience time.Duration
}

// Blob names content and where it can be had.
type Blob struct {
	Digest chunkfmt.Digest
	// Repo is HOST/REPOSITORY, with the name of the registry as users write it.
	Repo string
	// Ends are the exclusive, ascending ends of the blob's groups, which become
	// the pieces of content that is new to the swarm. Nil: pieces of equal
	// length. They are not changed after the first call.
	Ends []int64
}

// Range is a part of a blob in bytes.
type Range struct{ Offset, Length int64 }

// Client talks to one daemon. Its methods may be called by several goroutines.
type Client struct {
	patience time.Duration
	conn     *grpc.ClientConn
	api      apiv1.NodeClient
	mirror   *mirror
}

// The daemon is on this machine: it is dialed again soon after it went away.
// Windows are fixed, large enough for a stream to run at memory speed, and bound
// what waits in a stream that nobody reads.
const (
	redialFirst  = 20 * time.Millisecond
	redialMax    = 500 * time.Millisecond
	streamWindow = 1 << 20
	connWindow   = 16 << 20
	maxAnswer    = 64 << 20 // statuses have piece tables
)

// New returns a client. It connects when it is used; the caller closes it.
func New(o Options) (*Client, error) {
	if o.Socket == "" {
		o.Socket = DefaultSocket
	}
	if o.MirrorSocket == "" {
		ext := filepath.Ext(o.Socket)
		o.MirrorSocket = strings.TrimSuffix(o.Socket, ext) + "-http" + ext
	}
	if o.Patience == 0 {
		o.Patience = 5 * time.Second
	}
	redial := backoff.Config{BaseDelay: redialFirst, Multiplier: 2, Jitter: 0.2, MaxDelay: redialMax}
	conn, err := grpc.NewClient("passthrough:///dfdaemon",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: redial, MinConnectTimeout: time.Second}),
		grpc.WithStaticStreamWindowSize(streamWindow), grpc.WithStaticConnWindowSize(connWindow),
		grpc.WithIdleTimeout(0), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
		grpc.WithStatsHandler(answers{}), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", o.Socket)
		}))
	if err != nil {
		return nil, fmt.Errorf("set up the connection to dfdaemon at %s: %w", o.Socket, err)
	}
	return &Client{patience: o.Patience, conn: conn, api: apiv1.NewNodeClient(conn), mirror: newMirror(o.MirrorSocket)}, nil
}

// Close ends the connections and the calls under way.
func (c *Client) Close() error {
	c.mirror.close()
	return c.conn.Close()
}

// Transport returns what asks registries through the daemon: requests for
// https://HOST/v2/… go to its mirror. Others fail.
func (c *Client) Transport() http.RoundTripper { return c.mirror }

// source is the message that names a blob. Tables of more pieces than the
// daemon takes are left out: such a blob is cut into equal pieces.
func (b *Blob) source() (*apiv1.Source, error) {
	host, repo, ok := strings.Cut(b.Repo, "/")
	if !ok || host == "" || repo == "" {
		return nil, fmt.Errorf("repository %q: want HOST/REPOSITORY", b.Repo)
	}
	id := string(task.BlobID(task.Digest(b.Digest)))
	s := &apiv1.Source{TaskId: id, Url: "https://" + host + "/v2/" + repo + "/blobs/" + id}
	if n := len(b.Ends); n > 0 && n <= maxEnds {
		s.Table = &apiv1.Table{Length: b.Ends[n-1], Ends: b.Ends}
	}
	return s, nil
}

// maxEnds bounds a piece table in a message: gRPC servers take 4 MiB by default,
// and an end may have 6 bytes.
const maxEnds = 600_000

// Stream writes the n bytes of a blob at off to w, in order, as they arrive. Of a
// blob that ends before, the error wraps io.ErrUnexpectedEOF. It makes one
// attempt. The bytes given to w are w's only until Write returns. An error of w
// ends it and is returned as it is.
func (c *Client) Stream(ctx context.Context, b Blob, off, n int64, p Priority, w io.Writer) error {
	if n <= 0 {
		return nil
	}
	src, err := b.source()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream also when w failed
	call, a := watch(ctx)
	stream, err := c.api.Read(call, &apiv1.ReadRequest{TaskId: src.TaskId, Offset: off, Length: n, Source: src, Priority: p})
	if err != nil {
		return c.wrap(&b, off, n, classify(ctx, err, a))
	}
	var got int64
	for {
		m, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF) && got == n:
			return nil
		case errors.Is(err, io.EOF):
			return c.wrap(&b, off, n, fmt.Errorf("%d bytes came: %w", got, io.ErrUnexpectedEOF))
		case err != nil:
			return c.wrap(&b, off, n, classify(ctx, err, a))
		case int64(len(m.Data)) > n-got:
			return c.wrap(&b, off, n, errors.New("more bytes came than were asked for"))
		}
		if _, err := w.Write(m.Data); err != nil {
			return err
		}
		got += int64(len(m.Data))
	}
}

func (c *Client) wrap(b *Blob, off, n int64, err error) error {
	return fmt.Errorf("read %d bytes at %d of %s@%s: %w", n, off, b.Repo, b.Digest, err)
}

// appender collects what is written to it.
type appender []byte

// Write appends p.
func (a *appender) Write(p []byte) (int, error) {
	*a = append(*a, p...)
	return len(p), nil
}

// ReadBlob appends the n bytes of a blob at off to dst[:0] and returns it. A
// daemon that cannot be reached is waited for; what has come is not asked for
// again.
func (c *Client) ReadBlob(ctx context.Context, b Blob, off, n int64, dst []byte, p Priority) ([]byte, error) {
	got := appender(dst[:0])
	err := c.retry(ctx, func() error {
		done := int64(len(got))
		return c.Stream(ctx, b, off+done, n-done, p, &got)
	})
	if err != nil {
		return nil, err
	}
	return got, nil
}

// Prefetch asks the daemon to fetch ranges of a blob, none for all of it,
// without waiting for them.
func (c *Client) Prefetch(ctx context.Context, b Blob, ranges []Range, p Priority) error {
	src, err := b.source()
	if err != nil {
		return err
	}
	r := &apiv1.PrefetchRequest{TaskId: src.TaskId, Source: src, Priority: p}
	for _, x := range ranges {
		r.Ranges = append(r.Ranges, &apiv1.Range{Offset: x.Offset, Length: x.Length})
	}
	err = c.retry(ctx, func() error {
		return unary(ctx, func(ctx context.Context) error { _, err := c.api.Prefetch(ctx, r); return err })
	})
	if err != nil {
		return fmt.Errorf("prefetch %s@%s: %w", b.Repo, b.Digest, err)
	}
	return nil
}

// Discard makes the daemon forget what it holds of a blob, so that it is fetched
// anew. It does nothing while somebody else uses the blob.
func (c *Client) Discard(ctx context.Context, b Blob) error {
	r := &apiv1.RemoveTaskRequest{TaskId: string(task.BlobID(task.Digest(b.Digest)))}
	err := c.retry(ctx, func() error {
		return unary(ctx, func(ctx context.Context) error { _, err := c.api.RemoveTask(ctx, r); return err })
	})
	if err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, errInUse) {
		return fmt.Errorf("discard the daemon's copy of %s: %w", b.Digest, err)
	}
	return nil
}

// Ping asks the daemon for a sign of life, once.
func (c *Client) Ping(ctx context.Context) error {
	err := unary(ctx, func(ctx context.Context) error {
		_, err := c.api.CacheUsage(ctx, &apiv1.CacheUsageRequest{})
		return err
	})
	if err != nil {
		return fmt.Errorf("ping dfdaemon: %w", err)
	}
	return nil
}

// unary makes a call and classifies its error.
func unary(ctx context.Context, call func(context.Context) error) error {
	watched, a := watch(ctx)
	return classify(ctx, call(watched), a)
}

// retry calls f again while the daemon cannot be reached and patience lasts.
func (c *Client) retry(ctx context.Context, f func() error) error {
	end := time.Now().Add(c.patience)
	for wait := redialFirst; ; wait = min(2*wait, redialMax) {
		err := f()
		if err == nil || !errors.Is(err, ErrUnreachable) || time.Now().Add(wait).After(end) {
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}
