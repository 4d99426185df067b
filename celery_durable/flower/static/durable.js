/* The pages of durable runs: they ask for news, and send what people do. Flower makes all HTML, and escapes it. */
(function () {
    "use strict";

    var root = document.currentScript.dataset.durableRoot,
        api = root.replace(/durable$/, "api/durable/run/"),
        style = document.currentScript.src.replace("durable.js", "durable.css"),
        SOON = 400,
        WATCHED = 30000,
        HELD = 1000,
        watchUntil = 0,
        heldUntil = 0,
        asking = 0,
        last = "",
        timer = null;

    function live() {
        return document.getElementById("durable-live");
    }

    function cookie(name) {
        var found = document.cookie.match("(?:^|;)\\s*" + name + "\\s*=\\s*([^;]+)");
        return found ? decodeURIComponent(found[1]) : "";
    }

    // -- what happened

    function say(text, kind, address) {
        var place = document.getElementById("durable-said"),
            message = document.createElement("div"),
            link;
        if (!place) {
            return;
        }
        message.className = "alert alert-" + kind;
        message.textContent = text.charAt(0).toUpperCase() + text.slice(1);
        if (address) {
            link = document.createElement("a");
            link.href = address.href;
            link.textContent = address.text;
            link.className = "alert-link ms-1";
            message.append(link);
        }
        place.replaceChildren(message);
    }

    // -- news

    function address() {
        return panelled ? root + "/panel/" + encodeURIComponent(panelled) : window.location.href;
    }

    function show(html) {
        var found = new DOMParser().parseFromString(html, "text/html").getElementById("durable-live"),
            shown = live(),
            active = document.activeElement;
        if (!found || found.outerHTML === last || isBeingUsed()) {
            return;
        }
        last = found.outerHTML;
        shown.replaceWith(document.adoptNode(found));
        openButtons();
        placeActions();
        focusAgain(active);
    }

    function openButtons() {
        // A page comes with closed buttons: before this script is here, a click would be lost.
        document.querySelectorAll("[data-durable-verb]").forEach(function (button) {
            button.disabled = false;
        });
    }

    function focusAgain(element) {
        // The keyboard stays on its button, although the button is a new one.
        Array.from(document.querySelectorAll(".durable a, .durable button, .durable-panel-actions button"))
            .filter(function (found) {
                return element !== document.activeElement && found.isEqualNode(element);
            })
            .slice(0, 1)
            .forEach(function (found) {
                found.focus({preventScroll: true});
            });
    }

    function isBeingUsed() {
        // A button must not go away between the press and the click, nor open again before the answer to it, nor a text
        // go away while somebody copies it.
        var selection = window.getSelection();
        return asking > 0 || Date.now() < heldUntil || (!selection.isCollapsed && live().contains(selection.anchorNode));
    }

    function refresh() {
        if (document.hidden) {
            return schedule();
        }
        return fetch(address(), {credentials: "same-origin"})
            .then(function (answer) {
                // A page that refuses says why.
                return answer.text();
            })
            .then(show)
            .catch(function () { /* Flower is away; the next time it may be back. */ })
            .then(schedule);
    }

    function schedule() {
        var shown = live(),
            pause = shown ? Number(shown.dataset.durableRefresh) : 0;
        window.clearTimeout(timer);
        if (Date.now() < watchUntil) {
            pause = SOON;
        }
        if (pause) {
            timer = window.setTimeout(refresh, pause);
        }
    }

    // -- what people do

    function act(button) {
        var data = button.dataset,
            facts = data.durableFrom ? {from_step: data.durableFrom} : {};
        button.disabled = true;
        asking += 1;
        fetch(api + encodeURIComponent(data.durableId) + "/" + data.durableVerb, {
            method: "POST",
            credentials: "same-origin",
            headers: {"Content-Type": "application/json", "X-XSRFToken": cookie("_xsrf")},
            body: JSON.stringify(facts)
        }).then(function (answer) {
            return answer.text().then(function (text) {
                var done;
                if (!answer.ok) {
                    say(text || "Flower answered " + answer.status, "danger");
                    return;
                }
                done = JSON.parse(text);
                if (done.new_id) {
                    say(done.said.slice(0, -done.new_id.length), "success", {
                        href: root + "/run/" + encodeURIComponent(done.new_id),
                        text: done.new_id
                    });
                } else {
                    say(done.said, "success");
                }
            });
        }).catch(function (error) {
            say("Flower does not answer: " + error.message, "danger");
        }).then(function () {
            asking -= 1;
            button.disabled = false;
            watchUntil = Date.now() + WATCHED;
            refresh();
        });
    }

    document.addEventListener("pointerdown", function () {
        heldUntil = Date.now() + HELD;
    });

    document.addEventListener("click", function (event) {
        var button = event.target.closest("[data-durable-verb]");
        if (button) {
            heldUntil = 0;
            act(button);
        }
    });

    // -- Flower's own page of a task

    var task = document.getElementById("task-page"),
        panelled = task && document.getElementById("taskid").textContent;

    function placeActions() {
        // Where Flower has its own buttons.
        var place = task && task.querySelector(".detail-actions, h2"),
            actions = document.querySelector("#durable-panel .durable-panel-actions"),
            before = place && place.querySelector(".durable-panel-actions");
        if (before) {
            before.remove();
        }
        if (place && actions) {
            place.append(actions);
        }
    }

    function openPanel() {
        var panel = document.createElement("div"),
            head = task.querySelector(".detail-page-header"),
            link = document.createElement("link");
        link.rel = "stylesheet";
        link.href = style;
        panel.id = "durable-panel";
        panel.className = "durable durable-panel";
        panel.innerHTML = '<div id="durable-said" role="status" aria-live="polite"></div><div id="durable-live"></div>';
        document.head.append(link);
        if (head) {
            head.after(panel);
        } else {
            task.append(panel);
        }
        refresh();
    }

    openButtons();
    if (panelled) {
        openPanel();
    } else {
        schedule();
    }
}());
