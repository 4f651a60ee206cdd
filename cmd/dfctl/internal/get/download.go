package get

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"path/filepath"
	"time"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/daemon"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
	"github.com/damselfly-io/damselfly/internal/task"
)

// Result is what became of a download; -o json prints it as it is.
type Result struct {
	URL     string  `json:"url"` // without user name and password
	File    string  `json:"file"`
	Bytes   int64   `json:"bytes"`         // of the whole content
	Resumed int64   `json:"resumed_bytes"` // of these, kept from an earlier run
	SHA256  string  `json:"sha256"`
	Seconds float64 `json:"seconds"`
	From    *From   `json:"from"` // null if dfdaemon did not tell
	TaskID  string  `json:"task_id"`
}

// From counts the bytes that dfdaemon received for the task, by sender. All
// are zero if this node had the content.
type From struct {
	Peers     int64 `json:"peers"`
	Supernode int64 `json:"supernode"`
	Origin    int64 `json:"origin"`
}

// download is one run.
type download struct {
	req     *request
	console *output.Console
	client  *daemon.Client
	before  *apiv1.TaskStatus // the task when it was opened; never nil after open
}

// sink takes the content, in order.
type sink interface {
	io.Writer
	sum() string // of all that was written
}

// toFile downloads into the request's file.
func (d *download) toFile(ctx context.Context) (*Result, error) {
	start := d.console.Now()
	p, err := openPart(d.req.file)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", d.req.name, err)
	}
	res, err := d.intoPart(ctx, p)
	if err != nil {
		return nil, d.stopped(p, err)
	}
	if err := p.commit(); err != nil {
		return nil, fmt.Errorf("save %s: %w", d.req.file, err)
	}
	res.File = d.req.file
	res.Seconds = d.console.Now().Sub(start).Seconds()
	res.From = d.origins(ctx, res.TaskID)
	return res, nil
}

func (d *download) intoPart(ctx context.Context, p *part) (*Result, error) {
	st, length, err := d.open(ctx)
	if err != nil {
		return nil, err
	}
	err = p.resume(ctx, st.TaskId, length, func(n int64) {
		if !d.req.quiet {
			d.console.Remarkf("checking the %s from an earlier run", output.Bytes(n))
		}
	})
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", d.req.name, err)
	}
	resumed := p.size
	if err := d.copy(ctx, p, st.TaskId, resumed, length); err != nil {
		return nil, err
	}
	return &Result{URL: d.req.source.Url, Bytes: length, Resumed: resumed, SHA256: p.sum(), TaskID: st.TaskId}, nil
}

// stopped ends a run that failed and tells what is left of it.
func (d *download) stopped(p *part, err error) error {
	if code, ok := exit.Code(err); ok && code == exit.Mismatch {
		return errors.Join(err, p.discard())
	}
	kept, keepErr := p.keep()
	if kept && keepErr == nil {
		d.console.Remarkf("%s are kept in %s; running the same command again continues there",
			output.Bytes(p.size), output.Clean(p.path))
	}
	return errors.Join(err, keepErr)
}

// toStdout downloads to standard output.
func (d *download) toStdout(ctx context.Context) error {
	st, length, err := d.open(ctx)
	if err != nil {
		return err
	}
	return d.copy(ctx, &stream{w: d.console.Out, hash: sha256.New()}, st.TaskId, 0, length)
}

// stream is a sink that cannot be taken back.
type stream struct {
	w    io.Writer
	hash hash.Hash
}

func (s *stream) Write(b []byte) (int, error) {
	n, err := s.w.Write(b)
	s.hash.Write(b[:n])
	return n, err
}

func (s *stream) sum() string { return hex.EncodeToString(s.hash.Sum(nil)) }

// open asks the daemon for the content and returns its task and length.
func (d *download) open(ctx context.Context) (*apiv1.TaskStatus, int64, error) {
	doing := "get " + d.req.name
	st, err := d.client.Open(ctx, &apiv1.OpenRequest{Source: d.req.source, Priority: d.req.priority, Whole: true})
	if err != nil {
		return nil, 0, d.hint(d.client.Explain(ctx, doing, err))
	}
	// Both are used as they are below: one is written to a file, the other
	// decides where the download ends.
	if _, err := task.ParseID(st.TaskId); err != nil {
		return nil, 0, fmt.Errorf("%s: dfdaemon answered with an %w", doing, err)
	}
	if st.Table == nil || st.Table.Length < 0 {
		return nil, 0, fmt.Errorf("%s: dfdaemon did not tell how long the content is", doing)
	}
	if d.req.digest != "" && st.TaskId != d.req.source.TaskId {
		return nil, 0, fmt.Errorf("%s: dfdaemon opened %s instead of %s", doing, st.TaskId, d.req.source.TaskId)
	}
	d.before = st
	if st.Active {
		d.before = &apiv1.TaskStatus{} // what has come already came for this
	}
	return st, st.Table.Length, nil
}

// hint says what helps against a refusal.
func (d *download) hint(err error) error {
	code, ok := exit.Code(err)
	if !ok || code != exit.Refused {
		return err
	}
	if c := d.req.source.Credential; c.Authorization == "" && c.Username == "" {
		return fmt.Errorf("%w; give a credential by --header 'Authorization: …'", err)
	}
	return fmt.Errorf("%w; the credential given is not accepted for this", err)
}

// copy writes the content from offset to out and checks the whole.
func (d *download) copy(ctx context.Context, out sink, id string, offset, length int64) error {
	progress := d.console.NewProgress(d.req.quiet)
	row := output.Row{Name: filepath.Base(d.req.file), Done: offset, Total: length}
	if d.req.file == stdout {
		row.Name = "stdout"
	}
	progress.Update(row)
	err := d.receive(ctx, id, offset, length, func(data []byte) error {
		if _, err := out.Write(data); err != nil {
			return fmt.Errorf("write to %s: %w", d.req.file, err)
		}
		row.Done += int64(len(data))
		progress.Update(row)
		return nil
	})
	if err != nil {
		row.Note = "stopped"
		progress.Finish(row)
		return err
	}
	progress.Finish(row)
	if got := out.sum(); d.req.digest != "" && got != d.req.digest {
		return exit.With(exit.Mismatch, fmt.Errorf("get %s: the content has SHA-256 %s, not %s: it is not what was asked for", d.req.name, got, d.req.digest))
	}
	return nil
}

// receive passes the content from offset to write, and fails if there is more
// or less of it than length says.
func (d *download) receive(ctx context.Context, id string, offset, length int64, write func([]byte) error) error {
	if offset == length {
		return nil
	}
	doing := "get " + d.req.name
	// Ends the stream when writing fails.
	streamCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := d.client.Read(streamCtx, &apiv1.ReadRequest{TaskId: id, Offset: offset, Source: d.req.source, Priority: d.req.priority})
	if err != nil {
		return d.client.Explain(ctx, doing, err)
	}
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return d.hint(d.client.Explain(ctx, doing, err))
		}
		if offset += int64(len(chunk.Data)); offset > length {
			return fmt.Errorf("%s: dfdaemon sent more than the %d bytes announced", doing, length)
		}
		if err := write(chunk.Data); err != nil {
			return err
		}
	}
	if offset < length {
		return fmt.Errorf("%s: dfdaemon ended after %d of %d bytes", doing, offset, length)
	}
	return nil
}

// origins returns who sent the content, nil if that cannot be known: the
// content is complete, and this is not worth failing for.
func (d *download) origins(ctx context.Context, id string) *From {
	const patience = 2 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	watch, err := d.client.Watch(ctx, &apiv1.WatchRequest{TaskId: id})
	if err != nil {
		return nil
	}
	st, err := watch.Recv()
	if err != nil {
		return nil
	}
	return &From{
		Peers: st.FromPeers - d.before.FromPeers, Supernode: st.FromSupernode - d.before.FromSupernode,
		Origin: st.FromOrigin - d.before.FromOrigin,
	}
}
