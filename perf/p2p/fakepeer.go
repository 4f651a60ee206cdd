package main

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/internal/secret"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/wire"
	"github.com/damselfly-io/damselfly/perf/internal/fleet"
)

// fakePeer speaks a daemon's part of the control plane and moves no content.
type fakePeer struct {
	conn   *grpc.ClientConn
	stream apiv1.Swarm_ConnectClient
}

// joinPeer connects to a supernode as a daemon of the given name, which serves
// pieces at address, and waits for its welcome. The peer leaves when ctx ends
// or with leave.
func joinPeer(ctx context.Context, h fleet.Host, supernode, tokenFile, name, address string) (*fakePeer, error) {
	token, err := secret.ReadFile(tokenFile)
	if err != nil {
		return nil, err
	}
	// The small buffers are for the sake of a thousand peers in one process.
	const buffer = 4 << 10
	conn, err := grpc.NewClient("passthrough:///"+supernode,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithPerRPCCredentials(secret.Join{Token: token}),
		grpc.WithReadBufferSize(buffer), grpc.WithWriteBufferSize(buffer),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return h.Dial(ctx, "tcp", addr) }))
	if err != nil {
		return nil, fmt.Errorf("connect %s to the supernode: %w", name, err)
	}
	p := &fakePeer{conn: conn}
	if err := p.hello(ctx, name, address); err != nil {
		p.leave()
		return nil, fmt.Errorf("connect %s to the supernode: %w", name, err)
	}
	return p, nil
}

func (p *fakePeer) hello(ctx context.Context, name, address string) (err error) {
	if p.stream, err = apiv1.NewSwarmClient(p.conn).Connect(ctx); err != nil {
		return err
	}
	hello := &apiv1.Hello{Name: name, PeerAddress: address, Version: "benchmark"}
	if err := p.stream.Send(&apiv1.PeerMessage{Kind: &apiv1.PeerMessage_Hello{Hello: hello}}); err != nil {
		return err
	}
	for {
		m, err := p.stream.Recv()
		if err != nil {
			return err
		}
		if m.GetWelcome() != nil {
			return nil
		}
	}
}

// leave closes the connection.
func (p *fakePeer) leave() { _ = p.conn.Close() } // nothing depends on it

// held announces what the peer holds of a task; nil pieces: all.
func (p *fakePeer) held(id string, table task.Table, pieces task.Set) error {
	m := &apiv1.Held{TaskId: id, Table: wire.FromTable(table), Complete: pieces == nil}
	if pieces != nil {
		m.Pieces = pieces.Bytes()
	}
	return p.stream.Send(&apiv1.PeerMessage{Kind: &apiv1.PeerMessage_Held{Held: m}})
}

// interest asks to take part in a task; with whole unset, in its first byte.
func (p *fakePeer) interest(request uint64, id, url string, whole bool) error {
	m := &apiv1.Interest{Request: request, Source: &apiv1.Source{TaskId: id, Url: url}, Whole: whole}
	if !whole {
		m.Ranges = []*apiv1.Range{{Offset: 0, Length: 1}}
	}
	return p.stream.Send(&apiv1.PeerMessage{Kind: &apiv1.PeerMessage_Interest{Interest: m}})
}
