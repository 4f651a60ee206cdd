package fanotify

import (
	"encoding/hex"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"
)

// These are little-endian, as the machines are that run the tests.
const (
	head      = "30000000" + "03" + "00" + "1800" + "0000100000000000" + "07000000" + "39300000"
	rangeRec  = "06" + "00" + "1800" + "00000000" + "0020000000000000" + "0010000000000000"
	bareEvent = "18000000" + "03" + "00" + "1800" + "0000100000000000" + "08000000" + "39300000"
)

func TestParse(t *testing.T) {
	zeros := hex.EncodeToString(make([]byte, 16))
	for name, c := range map[string]struct {
		in   string
		want []event
		ok   bool
	}{
		"empty slot":        {zeros, nil, true},
		"event and padding": {head + rangeRec + zeros, []event{{unix.FAN_PRE_ACCESS, 7, 8192, 4096}}, true},
		"without range": {bareEvent + bareEvent, []event{
			{unix.FAN_PRE_ACCESS, 8, 0, -1}, {unix.FAN_PRE_ACCESS, 8, 0, -1},
		}, true},
		"range beyond a file": {head + "0600180000000000" + "ffffffffffffff7f" + "0100000000000000", []event{{unix.FAN_PRE_ACCESS, 7, 0, -1}}, true},
		"other record first":  {"38000000" + head[8:] + "07000800aabbccdd" + rangeRec, []event{{unix.FAN_PRE_ACCESS, 7, 8192, 4096}}, true},
		"cut off":             {head + rangeRec[:40], nil, false},
		"other version":       {"30000000" + "04" + head[10:] + rangeRec, nil, false},
		"metadata too long":   {"18000000" + "0300" + "1900" + bareEvent[16:], nil, false},
		"record of length 0":  {head + "06000000" + rangeRec[8:], nil, false},
		"too short":           {"17000000" + head[8:], nil, false},
	} {
		b, err := hex.DecodeString(c.in)
		if err != nil {
			t.Fatal(err)
		}
		got, err := parse(b)
		if (err == nil) != c.ok || c.ok && !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", bareEvent, head + rangeRec} {
		b, err := hex.DecodeString(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		events, err := parse(b)
		if err != nil {
			return
		}
		if len(events) > len(b)/metadataLen {
			t.Errorf("%d events in %d bytes", len(events), len(b))
		}
		for _, e := range events {
			if e.off < 0 || e.n < -1 || e.n > 0 && e.off+e.n < 0 {
				t.Errorf("range %d+%d", e.off, e.n)
			}
		}
	})
}
