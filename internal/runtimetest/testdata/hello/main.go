// Hello is what the images of the tests run: it prints the image's greeting.
package main

import (
	"fmt"
	"os"
)

func main() {
	greeting, err := os.ReadFile("/etc/greeting")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Print(string(greeting))
}
