package fdkeeper

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"testing"
)

func TestMessageOnTheWire(t *testing.T) {
	m := message{kind: kindPut, name: "abc", stamp: 0x0102030405060708, body: []byte{0xfe, 0xff}}
	want := "02" + "00" + "0003" + "00000002" + "0102030405060708" + "616263" + "feff"
	if got := hex.EncodeToString(m.encode()); got != want {
		t.Errorf("encoded %s, want %s", got, want)
	}
	if got, err := decode(m.encode()); err != nil || !reflect.DeepEqual(got, m) {
		t.Errorf("decoded %+v, %v", got, err)
	}
}

func TestErrorsCrossTheWire(t *testing.T) {
	for _, want := range codes {
		if got := errorMessage(want).err(); !errors.Is(got, want) {
			t.Errorf("%v became %v", want, got)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte{})
	f.Add(hello().encode())
	f.Add(message{kind: kindPut, name: "device/1", stamp: 3, body: []byte("meta")}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decode(b)
		if err != nil {
			return
		}
		if !bytes.Equal(m.encode(), b) {
			t.Errorf("%x decodes to %+v, which is encoded as %x", b, m, m.encode())
		}
	})
}

func FuzzDecodeEntries(f *testing.F) {
	f.Add([]byte{})
	f.Add(appendEntry(appendEntry(nil, Entry{"a", 1, 2}), Entry{"b", 3, 253}))
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := decodeEntries(b)
		if err != nil {
			return
		}
		var again []byte
		for _, e := range entries {
			again = appendEntry(again, e)
		}
		if !bytes.Equal(again, b) {
			t.Errorf("%x decodes to %v", b, entries)
		}
	})
}

func FuzzParsePart(f *testing.F) {
	f.Add("damselfly.0000000000000001.4.3.0.device/a.b")
	f.Add("http.socket")
	f.Fuzz(func(t *testing.T, s string) {
		p, ok := parsePart(s)
		if ok && (p.String() != s || len(s) > 255) {
			t.Errorf("%q parses as %+v", s, p)
		}
	})
}
