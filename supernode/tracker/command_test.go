package tracker

import (
	"sync/atomic"
	"testing"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/internal/testenv"
	"github.com/damselfly-io/damselfly/internal/wire"
)

func commandStatus(id uint64, done bool, err string) *apiv1.PeerMessage {
	return &apiv1.PeerMessage{Kind: &apiv1.PeerMessage_CommandStatus{CommandStatus: &apiv1.CommandStatus{Id: id, Done: done, Error: err}}}
}

func (d *daemon) waitCommand(cancel bool) *apiv1.Command {
	d.c.t.Helper()
	return d.wait("Command", func(m *apiv1.SupernodeMessage) bool {
		return m.GetCommand() != nil && m.GetCommand().Cancel == cancel
	}).GetCommand()
}

func TestCommands(t *testing.T) {
	c := newCluster(t, small, nil)
	c.set(func() { c.token = "preheat" })
	a, b, d, e := c.join("a"), c.join("b"), c.join("d"), c.join("e")
	src, err := wire.Request(c.source())
	if err != nil {
		t.Fatal(err)
	}
	src.Credential.Authorization = "Bearer preheat"
	var updates atomic.Int64
	var id atomic.Uint64
	id.Store(c.Order([]string{"a", "b", "d", "gone"}, src, apiv1.Priority_PRIORITY_PREHEAT, func() {
		updates.Add(1)
		c.Outcomes(id.Load()) // must not block
	}))
	got := a.waitCommand(false)
	if got.Id != id.Load() || got.Source.TaskId != string(c.id) || got.Source.Credential.Authorization != "Bearer preheat" ||
		got.Priority != apiv1.Priority_PRIORITY_PREHEAT {
		t.Errorf("told %+v", got)
	}
	if out := c.Outcomes(id.Load()); len(out) != 4 || out["gone"].Error == "" || out["a"] != (Outcome{}) {
		t.Errorf("outcomes %+v", out)
	}

	// What a command asks for is authorized, for those it was given to.
	if !c.ordered("a", id.Load()) || c.ordered("e", id.Load()) || c.ordered("a", id.Load()+1) {
		t.Error("ordered is wrong")
	}

	a.send(commandStatus(id.Load(), true, ""))
	b.send(commandStatus(id.Load(), true, "disk full"))
	e.send(commandStatus(id.Load(), true, "not mine"), commandStatus(99, true, ""))
	testenv.Eventually(t, func() bool {
		out := c.Outcomes(id.Load())
		return out["a"] == Outcome{Done: true} && out["b"] == Outcome{Error: "disk full"}
	}, "outcomes are known")
	a.send(commandStatus(id.Load(), false, "changed its mind"))
	a.barrier()
	if out := c.Outcomes(id.Load()); len(out) != 4 || !out["a"].Done || out["d"] != (Outcome{}) {
		t.Errorf("outcomes %+v", out)
	}
	before := updates.Load()
	d.send(interest(&apiv1.Interest{Request: 1, Source: got.Source, Whole: true, Command: id.Load()}))
	d.waitInfo(1)
	d.send(c.finished(0, 1))
	testenv.Eventually(t, func() bool { return updates.Load() > before }, "progress is told")

	d.leave()
	if out := c.Outcomes(id.Load()); out["d"].Error == "" {
		t.Errorf("outcomes %+v: d has left", out)
	}
	c.Forget(id.Load())
	if c.Outcomes(id.Load()) != nil || len(c.commands) != 0 {
		t.Error("a forgotten command is known")
	}
	c.Forget(id.Load())
}

func TestForgetCancels(t *testing.T) {
	c := newCluster(t, small, nil)
	a, b := c.join("a"), c.join("b")
	src, err := wire.Request(c.source())
	if err != nil {
		t.Fatal(err)
	}
	id := c.Order([]string{"a", "b"}, src, apiv1.Priority_PRIORITY_PREHEAT, func() {})
	b.send(commandStatus(id, true, ""))
	b.barrier()
	c.Forget(id)
	if got := a.waitCommand(true); got.Id != id {
		t.Errorf("told %+v", got)
	}
	for _, m := range b.messages() {
		if m.GetCommand() != nil && m.GetCommand().Cancel {
			t.Error("who is done was told to stop")
		}
	}
}
