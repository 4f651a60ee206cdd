package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
)

// errNoEvents is an answer that is not an event stream.
var errNoEvents = errors.New("the answer is not an event stream")

// event is one server-sent event.
type event struct {
	name string // "message" unless the server named it
	data string
}

// events passes the events of a stream to handle until it ends, fails, or
// handle returns an error. The regular end is io.EOF.
func (c *Client) events(ctx context.Context, doing, path string, handle func(event) error) error {
	resp, err := c.send(ctx, doing, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err != nil || kind != "text/event-stream" {
		return fmt.Errorf("%s: %w", doing, errNoEvents)
	}
	err = readEvents(resp.Body, handle)
	if errors.Is(err, io.EOF) {
		return err
	}
	return c.explain(ctx, doing, err)
}

// readEvents reads a stream as the HTML standard defines it, as far as a
// supernode uses it: without ids and with lines that end in \n or \r\n. An
// event that is cut off by the end of the stream is dropped.
func readEvents(r io.Reader, handle func(event) error) error {
	const firstBuffer = 64 << 10
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, firstBuffer), maxDocument)
	ev, data := event{}, []string(nil)
	for lines.Scan() {
		line := strings.TrimSuffix(lines.Text(), "\r")
		if line == "" {
			if data != nil {
				ev.data = strings.Join(data, "\n")
				if ev.name == "" {
					ev.name = "message"
				}
				if err := handle(ev); err != nil {
					return err
				}
			}
			ev, data = event{}, nil
			continue
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch field { // "" is a comment, which keeps the connection alive
		case "event":
			ev.name = value
		case "data":
			data = append(data, value)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read events: %w", err)
	}
	return io.EOF
}
