package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/damselfly-io/damselfly/internal/task"
)

// liar is a peer that joined with the right token, claims to hold the whole
// content and sends zeros for it.
type liar struct {
	peer *fakePeer
	srv  *http.Server
	wg   sync.WaitGroup
	sent atomic.Int64 // wrong pieces
	err  error        // why serving ended; read after wg
}

func startLiar(ctx context.Context, c *cluster, digest string) (*liar, error) {
	s := c.site
	host, addr := s.lab.Host(liarHost), s.at(liarHost, peerPort)
	lis, err := host.Listen(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("start the lying peer: %w", err)
	}
	l := &liar{}
	table := task.Uniform(int64(s.o.size))
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/tasks/{task}/pieces/{n}", func(w http.ResponseWriter, r *http.Request) { l.piece(w, r, table) })
	mux.HandleFunc("GET /v1/tasks/{task}/haves", func(w http.ResponseWriter, r *http.Request) { claimAll(w, r, table) })
	l.srv = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	l.wg.Go(func() {
		if err := l.srv.Serve(lis); !errors.Is(err, http.ErrServerClosed) {
			l.err = err
		}
	})
	if l.peer, err = joinPeer(ctx, host, s.at(supernodeHost, grpcPort), c.token, liarHost, addr); err != nil {
		return nil, errors.Join(err, l.close())
	}
	l.wg.Go(func() {
		for err := error(nil); err == nil; { // until the stream ends
			_, err = l.peer.stream.Recv()
		}
	})
	if err := l.peer.held(digest, table, nil); err != nil {
		return nil, errors.Join(fmt.Errorf("start the lying peer: %w", err), l.close())
	}
	return l, nil
}

func (l *liar) piece(w http.ResponseWriter, r *http.Request, table task.Table) {
	n, err := strconv.Atoi(r.PathValue("n"))
	if err != nil || n < 0 || n >= table.Count() {
		http.NotFound(w, r)
		return
	}
	l.sent.Add(1)
	length := min(table.PieceSize, table.Length-int64(n)*table.PieceSize)
	w.Header().Set("Content-Length", strconv.FormatInt(length, 10))
	_, _ = w.Write(make([]byte, length)) // whether it arrives is the reader's concern
}

// claimAll is the feed of a peer that holds everything: one pair of varints.
func claimAll(w http.ResponseWriter, r *http.Request, table task.Table) {
	pair := binary.AppendUvarint(binary.AppendUvarint(nil, 0), uint64(table.Count())) // #nosec G115 -- a count
	if _, err := w.Write(pair); err != nil {                                          // #nosec G705 -- two numbers
		return
	}
	if err := http.NewResponseController(w).Flush(); err != nil {
		return
	}
	<-r.Context().Done()
}

func (l *liar) close() error {
	if l.peer != nil {
		l.peer.leave()
	}
	err := l.srv.Close()
	l.wg.Wait()
	return errors.Join(err, l.err)
}
